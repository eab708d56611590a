from __future__ import annotations

import pytest

from forkjoin_bench.offloaded import AMPLE, OFFLOADED, RECOMPUTED, Count, cells, measure, recomputed, total


@pytest.fixture(scope="module")
def counts():
    """Six families on 130 blocks, which hold four, in all three ways."""
    return {case: measure(case, 6, 130, 1) for case in (AMPLE, RECOMPUTED, OFFLOADED)}


def test_families_that_lose_their_kv_load_most_of_what_they_would_recompute(counts):
    without, with_it = recomputed(counts[RECOMPUTED], counts), recomputed(counts[OFFLOADED], counts)
    assert without > 0
    assert counts[OFFLOADED].loaded > 0
    assert with_it < without / 2


def test_without_pressure_or_without_a_connector_nothing_is_loaded(counts):
    assert counts[AMPLE].loaded == counts[RECOMPUTED].loaded == 0


def test_the_table_shows_what_is_recomputed_of_what_is_without_a_connector(counts):
    assert cells(counts[RECOMPUTED], counts)[-1] == "1.00"
    assert float(cells(counts[OFFLOADED], counts)[-1]) < 0.5
    assert cells(counts[AMPLE], counts)[-1] == "–"


def test_the_counts_of_several_runs_are_added():
    assert total("x", [Count("x", 1, 20, 300), Count("x", 2, 30, 400)]) == Count("x", 3, 50, 700)
