"""An error anywhere in fork/join code ends one family, and hurts no other."""

from __future__ import annotations

import random

import pytest
from vllm.v1.request import RequestStatus

from forkjoin_scheduler.dialects.files import load
from forkjoin_scheduler.publish.events import Tokens, Voted
from forkjoin_server.start.configuration import EMBEDDED_MODEL
from tests.engine import renamed

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("clock")]

#: Seeds of a dialect's runs, in each of which another part of the targets raises.
SEEDS = (0, 1)


@pytest.fixture
def errors(monkeypatch):
    """The errors that are logged, with a traceback each."""
    from forkjoin_scheduler.vllm_seam import fence

    logged = []
    # not by a handler: each new engine configures all loggers anew
    monkeypatch.setattr(fence.logger, "error", lambda *_, exc_info, **__: logged.append(exc_info))
    return logged


#: The hooks that some test has raised in, for the last one to look at.
_RAISED_IN: set[str] = set()


@pytest.mark.parametrize("name", renamed.NO_VARIANTS)
def test_an_error_in_any_function_that_a_hook_comes_to_ends_one_family_at_most(
    name, tmp_path_factory, errors
):
    from tests.engine import faults
    from tests.engine.random_drive import Drive

    model = renamed.model_for(name, tmp_path_factory.mktemp)
    num_ended = 0
    for seed in SEEDS:
        run = name, "faults", seed, model
        calm = Drive.calm(*run)
        calm.run()
        with faults.counted() as calls:
            Drive.named(*run).run()
        chance = random.Random(f"{name} {seed}")
        for target, number in sorted(((t, n) for t, n in calls.items() if n), key=str):
            nth, is_behind = chance.randint(1, number), chance.random() < 0.5
            what = f"{target[1]}, call {nth} of {number}, {'behind' if is_behind else 'before'} it"
            errors.clear()
            drive = Drive.named(*run)
            try:
                with faults.raising(target, nth, is_behind=is_behind) as hooks:
                    drive.run()
                assert hooks, "it was not called by a hook"
                assert len(errors) == 1, "one traceback"
                assert len(drive.seen.failed) == 1, "one error is counted"
                drive.check_same(calm)
            except Exception as error:
                error.add_note(f'{what}; Drive.named("{name}", "faults", {seed}, …), {drive.setup}')
                raise
            _RAISED_IN.update(hooks)
            num_ended += any(drive.seen.failed)
    assert num_ended > len(SEEDS) * 5


def test_every_hook_was_raised_in():
    from tests.engine.faults import HOOKS, LOOK_UPS

    assert len(HOOKS) >= 10
    assert not HOOKS - LOOK_UPS - _RAISED_IN


def _drive(tmp_path_factory, seed=0):
    from tests.engine.random_drive import Drive

    return Drive.named("npr", "faults", seed, renamed.model_for("npr", tmp_path_factory.mktemp))


def test_where_the_accounts_do_not_agree_behind_an_error_the_engine_ends(
    tmp_path_factory, monkeypatch, errors
):
    from forkjoin_scheduler.errors import TornState
    from forkjoin_scheduler.machine import joining

    drive = _drive(tmp_path_factory)

    def tear(live, branch):
        manager = live.world._core.kv_cache_manager
        blocks = next(iter(manager.coordinator.single_type_managers[0].req_to_blocks.values()))
        blocks[0].ref_cnt += 2  # which is given back, then,
        manager.block_pool.free_block_queue.num_free_blocks -= 1  # and this is not
        raise RuntimeError("torn")

    monkeypatch.setattr(joining, "join", tear)
    with pytest.raises(TornState, match="expected the accounts to agree after the eviction of r"):
        drive.run()
    assert len(errors) == 1


def test_a_family_that_failed_before_its_turn_came_is_left_out():
    from tests.engine.by_hand import ByHand

    hand = ByHand(load("explicit"), EMBEDDED_MODEL, filler="y")
    hand.allowed_errors.add("learn")
    for request_id in "abc":
        hand.add(request_id, "q", forkjoin={"best_of": 2, "vote": "y"})
        hand.steps_until(lambda of=request_id: hand.decodes(f"{of}#1"))
    scheduler, called = hand.scheduler, []
    first, *others = scheduler._core.live.values()

    def fail(live):
        scheduler._fence.contain("learn", RuntimeError("a fault for a test"), live)

    def call(live):
        called.append(live)
        fail(others[1])

    fail(first)
    scheduler._fence.each("advance", [(live,) for live in (first, *others)], call)
    assert called == others[:1]
    hand.scheduler.finish_requests("b", RequestStatus.FINISHED_ABORTED)
    hand.finish()
    assert [e["where"] for e in hand.events("internal_error")] == ["learn", "learn"]


def test_a_thread_whose_grammar_leads_nowhere_ends_its_family_and_is_no_error_of_ours():
    """vLLM ends a request whose grammar takes none of its tokens. It was an alarm, with a traceback."""
    from vllm.v1.engine import FinishReason

    from tests.engine.by_hand import ByHand

    hand = ByHand(load("explicit"), EMBEDDED_MODEL, filler="y")
    for request_id in "ab":
        hand.add(request_id, "q", max_tokens=20, forkjoin={"best_of": 2, "vote": "y"})
        hand.steps_until(lambda of=request_id: hand.decodes(f"{of}#1"))
    manager = hand.scheduler.structured_output_manager
    manager.accept_tokens = lambda request, token_ids: request.request_id != "a#1"
    hand.finish()
    assert hand.events("internal_error") == []
    ends = [(o.request_id, o.finish_reason) for o in hand.outputs if o.finish_reason is not None]
    assert [reason for request_id, reason in ends if request_id == "a"] == [FinishReason.ERROR]
    assert [reason for request_id, reason in ends if request_id == "b"] not in ([], [FinishReason.ERROR])


#: What the scheduler holds with lists, sets or dictionaries of its own in which no family can be named.
_OF_NO_FAMILY = {"EngineTokenizer"}
#: What ``queues.take_out`` empties.
_QUEUES = {"BegunQueue"}


def test_whatever_the_scheduler_holds_that_keeps_something_the_fence_looks_through():
    from tests.engine.by_hand import ByHand

    scheduler = ByHand(load("explicit"), EMBEDDED_MODEL, max_drafts=3, draft_from="family").scheduler
    found, seen = [scheduler], set()
    while found:
        seen.add(part := found.pop())
        ours = [
            v for v in vars(part).values() if type(v).__module__.startswith("forkjoin_scheduler.vllm_seam")
        ]
        found += [v for v in ours if v not in seen]
    keeping = {
        type(part).__name__
        for part in seen - {*scheduler._fence._parts, scheduler, scheduler._fence}
        if any(isinstance(kept, list | set | dict) for kept in vars(part).values())
    }
    assert {scheduler._core, scheduler._gate, scheduler._waits, scheduler._drafts} < {
        *scheduler._fence._parts
    }
    assert keeping == _OF_NO_FAMILY | _QUEUES


def test_a_family_that_failed_is_named_by_no_collaborator_either():
    from tests.engine.by_hand import ByHand

    hand = ByHand(load("explicit"), EMBEDDED_MODEL, filler="y")
    hand.allowed_errors.add("learn")
    for request_id in "ab":
        hand.add(request_id, "q", forkjoin={"best_of": 2, "vote": "y", "max_threads_running": 1})
        hand.steps_until(lambda of=request_id: hand.decodes(f"{of}#0"))
    scheduler = hand.scheduler
    gate, waits = scheduler._gate, scheduler._waits
    assert set(gate.admitted) == {"a", "b"}
    assert waits.held_back == {"a#1", "b#1"}
    scheduler._fence.contain("learn", RuntimeError("a fault for a test"), scheduler._core.live["a"])
    scheduler._fence.evict_failed()
    assert set(gate.admitted) == {"b"}
    assert waits.held_back == {"b#1"}
    hand.scheduler.finish_requests("b", RequestStatus.FINISHED_ABORTED)
    hand.finish()


def test_a_thread_policy_that_raises_is_asked_no_more(errors):
    from forkjoin_scheduler.policy.threads import Eager
    from tests.engine.by_hand import ByHand

    class Raises:
        def choose(self, facts):
            raise RuntimeError("a fault for a test")

    hand = ByHand(load("explicit"), EMBEDDED_MODEL, filler="y")
    hand.allowed_errors.add("pace")
    hand.scheduler._pacer.policy = Raises()
    hand.add("a", "q", forkjoin={"best_of": 2, "vote": "y"})
    hand.steps_until(lambda: hand.decodes("a#1"))
    assert isinstance(hand.scheduler._pacer.policy, Eager)
    assert len(errors) == 1
    hand.scheduler.finish_requests("a", RequestStatus.FINISHED_ABORTED)
    hand.finish()


def test_an_error_of_vllms_own_goes_on(tmp_path_factory, monkeypatch):
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler

    def fail(self, scheduler_output):
        raise RuntimeError("vLLM's own")

    monkeypatch.setattr(AsyncScheduler, "_update_after_schedule", fail)
    drive = _drive(tmp_path_factory)
    with pytest.raises(RuntimeError, match="vLLM's own"):
        drive.run()


def test_in_an_engine_the_failed_request_ends_with_an_error_and_the_others_are_exact(engine, monkeypatch):
    from forkjoin_scheduler.machine import joining
    from tests.engine.conftest import worksheets

    prompts = [engine.prompt(s.prompt) for s in worksheets(4, seed=3)]
    exact = engine.reference(prompts)
    join = joining.join

    def join_or_raise(live, branch):
        if live.request.prompt_token_ids[: len(prompts[2])] == prompts[2]:
            raise RuntimeError("a fault for a test")
        return join(live, branch)

    monkeypatch.setattr(joining, "join", join_or_raise)
    answers = engine.run(prompts, engine.params())
    assert answers[2].finish_reason == "error"
    others = [0, 1, 3]
    assert [answers[i].token_ids for i in others] == [exact[i] for i in others]
    assert engine.snapshot() == engine.baseline


def test_what_is_told_of_a_family_can_not_end_the_output_handler(engine, monkeypatch):
    from forkjoin_scheduler.publish.feed import FEEDS
    from forkjoin_scheduler.publish.thread_text import ThreadText
    from forkjoin_scheduler.vllm_seam.front_end.output import ForkJoinOutputProcessor
    from forkjoin_scheduler.vllm_seam.front_end.wire import pack

    def fail(*args):
        raise ValueError("broken")

    seen = []
    monkeypatch.setattr(FEEDS, "observers", [lambda event, _: seen.append(event)])
    monkeypatch.setattr(ThreadText, "push", fail)
    processor = ForkJoinOutputProcessor(engine.llm.get_tokenizer(), log_stats=False)
    tokens = Tokens(index=0, token_ids=[1])
    voted = Voted(index=0, result=None)
    broken = pack("r0", [], 0)
    broken.kv_transfer_params = {"events": []}
    processor.process_outputs([pack("r0", [tokens, voted], 0), broken])
    assert [(e.kind, getattr(e, "where", None)) for e in seen] == [
        ("internal_error", "text"),
        ("voted", None),
        ("internal_error", "events"),
    ]
