"""Both model runners, sync and async: each cell in a process of its own (see matrix_case)."""

from __future__ import annotations

import os

import pytest

from tests.engine.processes import case_of

pytestmark = pytest.mark.engine


CASES = [("v1", "sync", 1), ("v1", "async", 1), ("v2", "sync", 1), ("v2", "async", 1), ("v1", "sync", 2)]
#: Its workers are told more than those of a re-prefill join: what to move, in steps that are in flight.
STITCHED = [*CASES, ("v1", "async", 2)]
PATHS = [("v2", "async", 1), ("v1", "async", 2)]


def run_case(runner, mode, ranks, join, parallel="tensor"):
    env = os.environ | {"VLLM_CPU_OMP_THREADS_BIND": "|".join(map(str, range(ranks)))} if ranks > 1 else None
    case = case_of("tests.engine.matrix_case", runner, mode, ranks, join, parallel, env=env)
    assert (case["runner"], case["async"], case["ranks"]) == (runner, mode == "async", ranks)
    assert case["exact"]
    assert case["returned"]
    assert case["num_threads"] >= 4
    return case


@pytest.mark.parametrize(("runner", "mode", "ranks"), CASES, ids=lambda v: str(v))
def test_fork_and_join_are_exact_on_each_runner_scheduling_and_with_tensor_parallelism(runner, mode, ranks):
    case = run_case(runner, mode, ranks, "reprefill")
    assert case["drawn"]
    assert case["restless"]
    assert case["obeys"]
    # "\n<Thread>\n1:" has 5 tokens; in sync mode the trigger has no KV yet
    assert case["first_thread_step_tokens"] == (5 if mode == "async" else 6)


def test_fork_and_join_are_exact_in_two_stages_of_a_pipeline():
    case = run_case("v1", "sync", 2, "reprefill", "pipeline")
    assert case["restless"]
    assert case["obeys"]
    assert case["first_thread_step_tokens"] == 6


@pytest.mark.parametrize(("runner", "mode", "ranks"), STITCHED, ids=lambda v: str(v))
def test_a_stitched_join_is_what_transformers_computes_and_is_restored_when_lost(runner, mode, ranks):
    case = run_case(runner, mode, ranks, "stitch")
    assert case["max_delta"] <= 1e-4
    assert case["restored"]
    # "\n<Path>\n1:" has 5 tokens
    assert case["first_thread_step_tokens"] == (5 if mode == "async" else 6)


@pytest.mark.parametrize(("runner", "mode", "ranks"), PATHS, ids=lambda v: str(v))
def test_path_embeddings_are_what_transformers_computes_and_are_restored_when_lost(runner, mode, ranks):
    case = run_case(runner, mode, ranks, "paths")
    assert case["max_delta"] <= 1e-4
    assert case["restored"]
    # "<think1>"
    assert case["first_thread_step_tokens"] == 1
