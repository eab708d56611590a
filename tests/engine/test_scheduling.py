"""When requests start and threads run: with every policy the same answers, in other steps."""

from __future__ import annotations

import random
from collections import Counter
from itertools import groupby

import pytest

from forkjoin_scheduler.policy.threads import AIM

pytestmark = pytest.mark.engine

NUM_BLOCKS = 134


@pytest.fixture(scope="module")
def tight():
    """An engine with about a third of the KV blocks that the families of ``families`` need."""
    from tests.engine.harness import Engine

    return Engine(
        num_gpu_blocks_override=NUM_BLOCKS, max_model_len=2048, max_num_seqs=24, join_ahead_tokens=128
    )


@pytest.fixture
def under(tight, monkeypatch):
    """Let an engine run with other settings of the scheduler, as if it had been started with them."""
    from forkjoin_scheduler.policy.admission import Admission

    def apply(engine=tight, **settings):
        scheduler, pacer = engine.scheduler, engine.scheduler._pacer
        monkeypatch.setattr(scheduler._core, "settings", scheduler._core.settings.model_copy(update=settings))
        monkeypatch.setattr(scheduler._gate, "admission", Admission())
        monkeypatch.setattr(pacer, "deadlines", None)
        monkeypatch.setattr(pacer, "policy", pacer.chosen_policy())
        engine.llm.reset_prefix_cache()
        engine.steps.clear()
        return engine

    return apply


def family(engine, rng, num_threads, lengths=(16, 96)):
    """A prompt of about 400 tokens, and what makes the model fork behind it."""
    outlines = "".join(f"<Outline>{n}: x</Outline>\n" for n in range(1, num_threads + 1))
    texts = {
        str(n): rng.choice("abcdef") * rng.randint(*lengths) + "</Thread>" for n in range(1, num_threads + 1)
    }
    prompt = engine.prompt("".join(rng.choice("0123456789") for _ in range(400)))
    return prompt, engine.scripted(f"<Parallel>\n<Outlines>\n{outlines}</Outlines>", texts, "</Parallel>\nok")


def families(engine, num, seed=5):
    rng = random.Random(seed)
    return [
        list(part) for part in zip(*(family(engine, rng, rng.randint(2, 6)) for _ in range(num)), strict=True)
    ]


def preemptions(engine, monkeypatch):
    lost = []
    original = engine.scheduler._preempt_request

    def preempt(request, *args, **kwargs):
        lost.append(request.request_id)
        original(request, *args, **kwargs)

    monkeypatch.setattr(engine.scheduler, "_preempt_request", preempt)
    return lost


def fixed(value):
    """An expectation that nothing changes."""
    from forkjoin_scheduler.policy.admission import Expectation

    return Expectation(value, weight=0.0, num_seen=10**9)


def threads_by_family(step):
    return Counter(i.split("#")[0] for i in step if "#" in i and "#fill" not in i)


def test_families_that_would_take_each_others_blocks_wait_for_one_another(under, monkeypatch):
    engine = under(admission="greedy")
    lost = preemptions(engine, monkeypatch)
    prompts, params = families(engine, 12)
    greedy = [a.text for a in engine.run(prompts, params)]
    num_lost, num_tokens = len(lost), sum(sum(s.values()) for s in engine.steps)
    assert num_lost > 5  # otherwise this is no pressure
    under(admission="family")
    lost.clear()
    assert [a.text for a in engine.run(prompts, params)] == greedy
    assert len(lost) <= num_lost // 4
    assert sum(sum(s.values()) for s in engine.steps) < num_tokens
    assert engine.snapshot() == engine.baseline
    assert not engine.scheduler._gate.admitted


def test_a_family_that_needs_more_than_there_is_still_runs_alone(under):
    engine = under(admission="family")
    engine.scheduler._gate.admission.tokens = fixed(1e6)
    prompts, params = families(engine, 3)
    answers = engine.run(prompts, params)
    assert all(a.finish_reason == "stop" for a in answers)
    roots = [{i.split("#")[0] for i in step} for step in engine.steps if step]
    assert max(len(r) for r in roots) == 1


def test_a_request_that_cannot_fork_passes_one_that_waits_for_room_but_not_for_ever(under):
    from forkjoin_scheduler.policy.step_admission import MAX_OVERTAKEN

    engine = under(admission="family")
    engine.scheduler._gate.admission.tokens = fixed(1e6)
    (first, second), params = families(engine, 2)
    engine.add(first, params[0])
    engine.step()
    waiting = engine.add(second, params[1])
    plain = engine.params(forkjoin={"enabled": False}, max_tokens=1)
    ids = [engine.add(engine.prompt(f"q{i}"), plain) for i in range(MAX_OVERTAKEN + 2)]
    engine.drain()
    # the engine's own ids have a suffix
    started = list(dict.fromkeys(i.split("-")[0] for step in engine.steps for i in step if "#" not in i))
    before = started[: started.index(waiting)]
    assert sum(i in before for i in ids) == MAX_OVERTAKEN
    assert set(ids) < set(started)


def test_a_model_that_does_not_fork_is_admitted_as_by_vllm(under):
    engine = under(admission="family")
    engine.scheduler._gate.admission.tokens = fixed(1e6)
    engine.scheduler._gate.admission.forks = fixed(0.01)
    prompts = [engine.prompt(f"q{i}") for i in range(4)]
    engine.run(prompts, engine.scripted("a" * 20, {}))
    assert len(next(step for step in engine.steps if step)) == 4


def test_what_requests_need_is_learnt_from_those_that_end_by_themselves(under):
    engine = under(admission="family")
    rng = random.Random(1)
    prompt, params = family(engine, rng, 3, lengths=(50, 50))
    engine.run([prompt], params)
    learnt = engine.scheduler._gate.admission
    (outline,) = {len(engine.scheduler._core.tokenizer.encode(t)) for t in ["<Outline>1: x</Outline>\n"]}
    assert learnt.width.mean == 3
    assert learnt.forks.mean == 1
    # three threads of 50 and an end tag, what stands around them, and the end of sequence
    assert 3 * 51 + 3 * outline < learnt.tokens.mean < 3 * 51 + 3 * outline + 20
    request_id = engine.add(prompt, params)
    engine.step_until(lambda: any("#" in i for i in engine.scheduler.requests))
    engine.core.abort_request([request_id])
    engine.drain()
    assert learnt.tokens.num_seen == 1
    assert not engine.scheduler._gate.admitted


@pytest.mark.parametrize("cap", [1, 2])
def test_no_more_threads_of_a_request_run_than_the_cap_says(under, cap):
    engine = under(max_threads_running=None)
    prompts, params = families(engine, 3, seed=8)
    eager = [a.text for a in engine.run(prompts, params)]
    assert max(n for step in engine.steps for n in threads_by_family(step).values()) > 2
    under(max_threads_running=cap)
    assert [a.text for a in engine.run(prompts, params)] == eager
    assert {n for step in engine.steps for n in threads_by_family(step).values()} == set(range(1, cap + 1))
    assert engine.snapshot() == engine.baseline


def test_a_request_says_how_many_of_its_threads_run_beside_others_that_do_not(under):
    engine = under(max_threads_running=None)
    rng = random.Random(8)
    prompts, params = (list(p) for p in zip(*(family(engine, rng, 4) for _ in range(2)), strict=True))
    eager = [a.text for a in engine.run(prompts, params)]
    params[0].extra_args["forkjoin"] = {"max_threads_running": 1}
    engine.llm.reset_prefix_cache()
    engine.steps.clear()
    assert [a.text for a in engine.run(prompts, params)] == eager
    most = Counter()
    for step in engine.steps:
        most |= Counter(threads_by_family(step))
    assert sorted(most.values()) == [1, 4]
    assert engine.snapshot() == engine.baseline


def test_a_thread_that_ends_at_its_limit_lets_only_the_next_run(under):
    engine = under(max_threads_running=None)
    prompt, params = family(engine, random.Random(8), 4)
    params.extra_args["forkjoin"] = {"max_threads_running": 1, "max_tokens_per_thread": 6}
    engine.llm.reset_prefix_cache()
    engine.steps.clear()
    engine.run([prompt], [params])
    counts = [n for step in engine.steps for n in threads_by_family(step).values()]
    assert set(counts) == {1}
    assert engine.snapshot() == engine.baseline


class Known:
    """A step cost of a millisecond a sequence."""

    is_ready = True

    def predict(self, load):
        return load.num_sequences / 1e3

    def observe(self, load, seconds):
        pass


@pytest.mark.parametrize(
    ("slo_itl_ms", "has_plain", "most"), [(1.5, True, 6), (5.8, True, 4), (5.8, False, 6), (100.0, True, 6)]
)
def test_as_many_threads_run_as_the_slack_allows_and_all_if_it_is_lost(
    under, monkeypatch, slo_itl_ms, has_plain, most
):
    """Where a step of one thread is too slow already (1.5 ms: two families), threads wait for nothing.

    Nor where no other stream gains by it.
    """
    engine = under()
    rng = random.Random(3)
    prompts, params = (list(p) for p in zip(*(family(engine, rng, 3) for _ in range(2)), strict=True))
    eager = [a.text for a in engine.run(prompts, params)]
    monkeypatch.setattr(engine.scheduler._pacer, "cost", Known())
    under(slo_itl_ms=slo_itl_ms)
    now = [0.0]
    monkeypatch.setattr("forkjoin_scheduler.vllm_seam.starts.thread_pacer.time.monotonic", lambda: now[0])
    ids = [engine.add(p, q) for p, q in zip(prompts, params, strict=True)]
    if has_plain:  # it outlasts both families
        plain = engine.params(forkjoin={"enabled": False}, max_tokens=600, ignore_eos=True)
        engine.add(engine.prompt("q"), plain)
    while engine.core.has_unfinished_requests():
        engine.step()
        now[0] += AIM * slo_itl_ms / 1e3  # every stream is just in time
    answers = engine.drain()
    assert [answers[i].text for i in ids] == eager
    running = [sum(threads_by_family(step).values()) for step in engine.steps]
    assert max(running) == most
    both = [step for step in engine.steps if len(threads_by_family(step)) == 2]
    assert both  # no family stood still for the other
    assert engine.snapshot() == engine.baseline


def test_the_cost_of_steps_is_learnt_from_the_engines_own(under):
    engine = under(slo_itl_ms=1000.0)
    prompts, params = families(engine, 4)
    engine.run(prompts, params)
    from forkjoin_scheduler.policy.step_cost import Load

    cost = engine.scheduler._pacer.cost
    assert cost.is_ready
    assert 0 < cost.predict(Load(1, 1, 400)) < cost.predict(Load(24, 512, 9600)) < 60
    assert not engine.scheduler._pacer._in_flight


def test_a_wide_fork_leaves_slots_to_requests_that_wait(tight, under):
    engine = under()
    rng = random.Random(4)
    prompt, params = family(engine, rng, 30, lengths=(40, 60))
    engine.add(prompt, params)
    engine.step_until(lambda: bool(engine.scheduler._core.threads))
    plain = engine.params(forkjoin={"enabled": False}, max_tokens=8)
    ids = [engine.add(engine.prompt(f"q{i}"), plain) for i in range(3)]
    engine.drain()
    running = [step for step in engine.steps if sum(threads_by_family(step).values()) > 1]
    beside = {i.split("-")[0] for step in running for i in step}
    assert beside > set(ids)
    assert sum(len(step) == 24 for step in running) > 40  # no slot stayed empty for it


def test_how_many_threads_and_requests_wait_is_told_when_it_changes(under, monkeypatch):
    from forkjoin_scheduler.publish.events import Load
    from forkjoin_scheduler.vllm_seam.front_end import wire

    engine = under(max_threads_running=1)
    update, told = engine.scheduler.update_from_output, []

    def recorded(*args):
        result = update(*args)
        packed = [wire.unpack(o) for outputs in result.values() for o in outputs.outputs]
        told.extend(e for p in packed if p is not None for e in p[1])
        return result

    monkeypatch.setattr(engine.scheduler, "update_from_output", recorded)
    prompt, params = family(engine, random.Random(6), 3, lengths=(9, 9))
    engine.run([prompt], params)
    loads = [(e.threads, e.requests) for e in told if isinstance(e, Load)]
    loads = [load for load, _ in groupby(loads)]  # what is expected has changed beside
    # nobody waits yet; all threads; one runs; the next; the last; the parent is joined; it runs
    assert loads == [(0, 0), (3, 0), (2, 0), (1, 0), (0, 0), (0, 1), (0, 0)]
