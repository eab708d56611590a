from __future__ import annotations

import pytest

from forkjoin_bench.kept.counts import ANSWER_TOKENS, BLOCK_SIZE, CONTEXT_TOKENS, KEPT, STOCK, cells, measure

NUM_AGENTS, NUM_BLOCKS, NUM_ABREAST = 2, 700, 6


@pytest.fixture(scope="module")
def counts():
    """Two sub-agents, on as many blocks as the load alone writes over in a moment."""
    how = (NUM_AGENTS, NUM_BLOCKS, NUM_ABREAST)
    return {case: measure(case, *how, at_once=True) for case in (STOCK, KEPT)}


def test_vllms_cache_has_lost_the_context_and_one_sub_agent_prefills_it_again(counts):
    assert counts[STOCK].again >= CONTEXT_TOKENS


def test_what_goes_on_from_a_kept_context_prefills_less_than_a_block_of_it(counts):
    assert counts[KEPT].again <= NUM_AGENTS * BLOCK_SIZE
    assert max(counts[KEPT].steps) <= min(counts[STOCK].steps)


def test_the_table_shows_what_each_sub_agent_prefilled(counts):
    kept = counts[KEPT]
    assert cells(kept)[:2] == ["at once", KEPT]
    assert int(cells(kept)[2]) == round(sum(kept.prefilled) / NUM_AGENTS) < ANSWER_TOKENS
