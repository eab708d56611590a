from __future__ import annotations

import pytest

from forkjoin_bench.loads import BLOCK_SIZE, Pair, cells, measure


@pytest.mark.timeout(600)
def test_one_run_of_a_pair_loads_all_full_blocks_and_the_other_computes_them():
    pairs = measure([100, 200], 2)
    assert [pair.tokens for pair in pairs] == [100, 200, 100, 200]
    assert [pair.loaded_tokens for pair in pairs] == [n // BLOCK_SIZE * BLOCK_SIZE for n in (100, 200)] * 2
    assert all(pair.computed_s > 0 and pair.loaded_s > 0 for pair in pairs)


def test_a_row_has_the_ratio_of_each_pair():
    pairs = [Pair(64, 0.5, 0.25, 64), Pair(64, 0.2, 0.2, 64), Pair(64, 0.1, 0.2, 64)]
    assert cells(64, pairs) == [64, "200.0 (100.0-500.0)", "200.0 (200.0-250.0)", "1.00 (0.50-2.00)"]
