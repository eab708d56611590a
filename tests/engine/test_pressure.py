"""Too few blocks, too few slots, aborts: exact, without deadlock, without a lost block."""

from __future__ import annotations

import random

import pytest

from forkjoin_scheduler.publish.events import ThreadEnded
from tests.engine.conftest import worksheets

pytestmark = pytest.mark.engine

#: What the rounding of fp32 may move a logprob by, computed in another batch; what saw other text differs by far more.
NATS = 1e-3


@pytest.fixture(scope="module", params=[0, 32], ids=["joins_at_once", "joins_ahead"])
def small(request):
    from tests.engine.harness import Engine

    return Engine(
        join_ahead_tokens=request.param, num_gpu_blocks_override=72, max_model_len=2048, max_num_seqs=4, max_num_batched_tokens=64,
        enable_chunked_prefill=True,
    )  # fmt: skip


def test_under_kv_and_slot_pressure_the_answers_are_exact(small):
    prompts = [small.prompt(s.prompt) for s in worksheets(10, seed=11)]
    answers = small.run(prompts, small.params(max_tokens=1800))
    assert [a.token_ids for a in answers] == small.reference(prompts)
    assert small.snapshot() == small.baseline


@pytest.mark.parametrize("seed", range(2))
def test_families_that_give_way_at_any_step_have_the_logprobs_of_undisturbed_ones(small, seed):
    prompts = [small.prompt(s.prompt) for s in worksheets(4, seed=20 + seed, max_long=4)]
    params = small.params(max_tokens=1800, logprobs=0)
    calm = [small.run([prompt], params)[0] for prompt in prompts]
    ids = [small.add(prompt, params) for prompt in prompts]
    made = disturb(small, random.Random(seed))
    answers = small.drain()
    assert made["families evicted"]
    assert made["blocks taken away"]
    assert any("<Thread>" in a.text for a in calm)
    for answer, undisturbed in zip((answers[i] for i in ids), calm, strict=True):
        assert answer.token_ids == undisturbed.token_ids
        ours, theirs = (
            [entry[token].logprob for entry, token in zip(a.logprobs, a.token_ids, strict=True)]
            for a in (answer, undisturbed)
        )
        assert ours == pytest.approx(theirs, abs=NATS)
    assert small.snapshot() == small.baseline


def disturb(engine, chance):
    """Step until all requests have ended; on the way take their blocks, evict, pause and reset. What was done."""
    from tests.engine.moves import Moves

    moves = Moves(engine.scheduler, chance)
    while engine.core.has_unfinished_requests():
        moves.move(0.05, is_idle=not engine.steps[-1])
        if chance.random() < 0.01:
            moves.stop()
            engine.scheduler.reset_prefix_cache(reset_running_requests=True)
        engine.step()
    moves.stop()
    return moves.made


@pytest.mark.parametrize(("first", "second"), [(300, 70), (300, 100), (270, 130)])
def test_parents_that_have_joined_in_the_same_step_and_hold_all_blocks_give_way(first, second):
    from tests.engine.harness import Engine

    engine = Engine(num_gpu_blocks_override=25, max_model_len=600, block_size=32, max_num_seqs=8)
    two = "<Parallel>\n<Outlines>\n<Outline>1: x</Outline>\n<Outline>2: y</Outline>\n</Outlines>"
    threads = {"1": "a" * first + "</Thread>", "2": "b" * second + "</Thread>"}
    answers = engine.run([engine.prompt("q")] * 2, engine.scripted(two, threads, "</Parallel>\n"))
    assert len({a.text for a in answers}) == 1
    assert answers[0].finish_reason == "stop"
    assert engine.snapshot() == engine.baseline


def test_parked_parents_that_hold_all_blocks_give_way(small):
    two = "<Parallel>\n<Outlines>\n<Outline>1: x</Outline>\n<Outline>2: y</Outline>\n</Outlines>"
    threads = {"1": "a" * 200 + "</Thread>", "2": "b" * 150 + "</Thread>"}
    params = small.scripted(two, threads, "</Parallel>\n")
    prompts = [small.prompt(str(i) * 400) for i in range(6)]
    answers = small.run(prompts, params)
    wanted = f"{two}\n<Thread>\n1:{threads['1']}<Thread>\n2:{threads['2']}\n</Parallel>\n"
    assert [a.text for a in answers] == [wanted] * 6
    assert small.snapshot() == small.baseline


def test_an_abort_in_the_middle_of_a_fork_returns_everything_in_the_same_step(engine):
    two = "<Parallel>\n<Outlines>\n<Outline>1: x</Outline>\n<Outline>2: y</Outline>\n</Outlines>"
    params = engine.scripted(two, {"1": "a</Thread>", "2": "b" * 300 + "</Thread>"})
    request_id = engine.add(engine.prompt("q"), params)
    engine.step_until(lambda: any(t.endswith("#1") for t in engine.scheduler.requests))
    engine.step_until(lambda: not any(t.endswith("#0") for t in engine.scheduler.requests))
    engine.core.abort_request([request_id])
    assert engine.snapshot() == engine.baseline


def test_aborts_at_every_stage_leave_nothing(engine):
    two = "<Parallel>\n<Outlines>\n<Outline>1: x</Outline>\n<Outline>2: y</Outline>\n</Outlines>"
    params = engine.scripted(two, {"1": "a" * 5 + "</Thread>", "2": "b" * 9 + "</Thread>"}, "</Parallel>\n")
    for num_steps in range(1, 60, 3):
        ids = [engine.add(engine.prompt(f"q{i}"), params) for i in range(3)]
        for _ in range(num_steps):
            engine.core.step()
        engine.core.abort_request(ids[:2])
        engine.drain()
        assert engine.snapshot() == engine.baseline


def test_an_aborted_family_reports_its_threads_as_cancelled(engine):
    two = "<Parallel>\n<Outlines>\n<Outline>1: x</Outline>\n<Outline>2: y</Outline>\n</Outlines>"
    params = engine.scripted(two, {"1": "a" * 300 + "</Thread>", "2": "b" * 300 + "</Thread>"})
    request_id = engine.add(engine.prompt("q"), params)
    engine.step_until(lambda: any(t.endswith("#1") for t in engine.scheduler.requests))
    engine.core.abort_request([request_id])
    ended = [e for live in engine.scheduler._leaving.aborted_pending_flush for e in live.events]
    assert [(e.index, e.reason) for e in ended if isinstance(e, ThreadEnded)] == [
        (0, "cancelled"),
        (1, "cancelled"),
    ]
