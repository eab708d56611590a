"""Models with recurrent layers fork: each thread starts on the state at the fork, and the parent keeps its own."""

from __future__ import annotations

import pytest

from tests.engine.processes import case_of

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory):
    from tests.engine.hybrid_models import engine_of

    return engine_of("granite_hybrid", tmp_path_factory.mktemp, max_num_seqs=8)


def test_threads_of_a_hybrid_model_start_on_the_state_at_the_fork_and_its_join_is_exact(hybrid):
    from tests.engine import hybrid_case as case

    hybrid.steps.clear()
    assert case.scripted(hybrid, [hybrid.prompt(text) for text in case.TEXTS])
    # "\n<Thread>\n1:" has 5 tokens, and the trigger has no state yet
    assert case.first_steps(hybrid) == [5 + hybrid.num_late] * 4
    assert hybrid.snapshot() == hybrid.baseline


CASES = [("v1", "sync", "granite_hybrid"), ("v1", "async", "granite_hybrid")]


@pytest.mark.parametrize(("runner", "mode", "name"), CASES, ids=lambda v: v)
def test_hybrid_models_fork_exactly_and_are_restored_when_they_lose_their_state(runner, mode, name):
    case = case_of("tests.engine.hybrid_case", runner, mode, name)
    assert (case["runner"], case["async"]) == (runner, mode == "async")
    assert case["scripted"]
    assert case["explicit"]
    assert case["returned"]
    assert case["first"] == [5 if mode == "async" else 6] * 4
    if runner == "v1":
        assert case["made"]["families evicted"]
        assert case["made"]["blocks taken away"]
        assert case["off"] < 1e-3
