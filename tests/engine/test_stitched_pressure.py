"""Stitched families under KV pressure: preempted, evicted, restored exactly, nothing lost."""

from __future__ import annotations

import pytest

from tests.engine.stitched_cases import TRAJECTORIES, Driver, Split, arithmetic, compare, split
from tests.engine.test_stitched import NATS, NUM_FREE, PROMPT

pytestmark = pytest.mark.engine

#: What fits into the small pool, with two rounds and nesting.
NAMES = ["uneven", "two_rounds", "nested", "three_rounds", "nested_in_both", "eight_wide"]


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    from forkjoin_scheduler.dialects.files import load
    from tests.engine.harness import Engine
    from tests.engine.renamed import MULTIVERSE, with_tokens

    model = with_tokens(tmp_path_factory.mktemp("multiverse"), MULTIVERSE)
    return Engine(
        load("multiverse"), model, num_gpu_blocks_override=40, max_model_len=576, max_num_seqs=8,
        max_num_batched_tokens=96, enable_chunked_prefill=True, limits={"max_threads_per_fork": 8},
    )  # fmt: skip


@pytest.fixture(scope="module")
def model():
    from tests.engine.stitched_reference import load_model

    return load_model()


@pytest.fixture
def restored(engine, monkeypatch):
    """Branches that were restored during the test."""
    found = []
    restore = type(engine.scheduler._restoring)._restore

    def noted(self, job, live, branch, source):
        found.append(branch.request_id)
        return restore(self, job, live, branch, source)

    monkeypatch.setattr(type(engine.scheduler._restoring), "_restore", noted)
    return found


def check_all(engine, model, names, answers):
    for name, answer in zip(names, answers, strict=True):
        tokens = answer.token_ids[-NUM_FREE:]
        own = [e[t].logprob for e, t in zip(answer.logprobs[-NUM_FREE:], tokens, strict=True)]
        context = Driver(engine).context(PROMPT, TRAJECTORIES[name], tokens)
        right = compare(model, context, tokens, own)
        assert right.same_tokens, name
        assert right.max_delta <= NATS, name


def test_families_that_lose_their_blocks_are_restored_exactly(engine, model, restored):
    names = NAMES * 3
    driver = Driver(engine)
    params = [driver.params(TRAJECTORIES[n], NUM_FREE) for n in names]
    answers = engine.run([engine.prompt(PROMPT)] * len(names), params)
    assert restored, "the pool was not small enough for the test to test anything"
    check_all(engine, model, names, answers)


@pytest.mark.parametrize("name", ["two_rounds", "nested_in_both", "depth_five"])
def test_a_family_evicted_at_any_step_goes_on_as_if_nothing_had_happened(engine, model, restored, name):
    driver = Driver(engine)
    params = driver.params(TRAJECTORIES[name], NUM_FREE)
    for num_steps in range(60, 460, 37):
        request_id = engine.add(engine.prompt(PROMPT), params)
        for _ in range(num_steps):
            engine.step()
        for live in list(engine.scheduler._core.live.values()):
            engine.scheduler._eviction.evict(live)
        engine.scheduler._eviction.restore_next()
        answers = engine.drain()
        assert engine.snapshot() == engine.baseline
        check_all(engine, model, [name], [answers[request_id]])
    assert restored


@pytest.mark.parametrize("num_left", range(1, 9))
def test_a_thread_that_is_cancelled_while_it_is_restored_leaves_nothing(engine, restored, num_left):
    """An earlier sibling, restored before it, ends the answer by a stop token."""
    length = 70
    threads = [[arithmetic(1, 90)], ["a" * length + "Z"], ["b\n", split("i", [2, 9]), arithmetic(3, 60)]]
    stop = engine.tokenizer.token_id("Z")
    params = Driver(engine).params(["w\n", Split("u", threads)], NUM_FREE, stop_token_ids=[stop])
    request_id = engine.add(engine.prompt(PROMPT), params)
    scheduler = engine.scheduler

    def is_near() -> bool:
        found = [live.family.threads[1] for live in scheduler._core.live.values()]
        return any(thread.num_generated == length - num_left for thread in found)

    engine.step_until(is_near)
    (live,) = scheduler._core.live.values()
    scheduler._eviction.evict(live)
    scheduler._eviction.restore_next()
    answer = engine.drain()[request_id]
    assert restored
    assert answer.stop_reason == stop
    assert engine.snapshot() == engine.baseline


def test_aborts_at_any_step_leave_nothing(engine):
    driver = Driver(engine)
    params = [driver.params(TRAJECTORIES[n], NUM_FREE) for n in NAMES[:4]]
    for num_steps in range(5, 400, 31):
        ids = [engine.add(engine.prompt(PROMPT), p) for p in params]
        for _ in range(num_steps):
            engine.step()
        engine.core.abort_request(ids[:3])
        engine.drain()
        assert engine.snapshot() == engine.baseline
