"""Votes that end early, on the real scheduler without a model."""

from __future__ import annotations

import math
from typing import ClassVar

import pytest
from vllm.v1.request import RequestStatus

from forkjoin_scheduler.dialects.files import load
from forkjoin_scheduler.policy.pruning import POLICIES, Pruning, VoteFacts
from forkjoin_server.start.configuration import EMBEDDED_MODEL
from tests.tiers import Tier

pytestmark = pytest.mark.engine

NUM_SEEDS = {Tier.FIRST: 6, Tier.CI: 15, Tier.ALL: 60}
MODES = pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
END = "<|end|>"


@pytest.fixture
def vote():
    """A vote of so many threads that all run."""
    from tests.engine.by_hand import ByHand

    def start(best_of, *, is_async=False, num_running=None, allowed_errors=(), **asked):
        hand = ByHand(load("explicit"), EMBEDDED_MODEL, is_async=is_async, filler="y")
        hand.allowed_errors |= set(allowed_errors)
        hand.add("r", "q", forkjoin={"best_of": best_of, "vote": r"=\d", **asked})
        hand.steps_until(lambda: hand.decodes(f"r#{(num_running or best_of) - 1}"))
        return hand

    return start


def ends(hand):
    return {e["index"]: e["reason"] for e in hand.events("thread_ended")}


def answer(hand):
    """What the client gets, without what the thread wrote before it was told what to write."""
    return hand.text("r").lstrip("y")


def finish_thread(hand, index, text):
    """Let a thread write ``text`` and end."""
    hand.say(f"r#{index}", text + END)
    hand.steps_until(lambda: index in ends(hand))


@MODES
def test_the_threads_of_a_vote_that_can_not_be_overturned_are_cut_in_the_step(vote, is_async):
    hand = vote(5, is_async=is_async)
    finish_thread(hand, 0, "=1")
    finish_thread(hand, 2, "=2")
    finish_thread(hand, 1, "=1")
    assert set(ends(hand)) == {0, 1, 2}, "two votes of five, two threads run: it can be overturned"
    finish_thread(hand, 3, "=1")
    assert ends(hand) == {0: "stop", 1: "stop", 2: "stop", 3: "stop", 4: "cut"}
    assert not hand.scheduler.requests
    assert answer(hand) == f"=1{END}"
    (voted,) = hand.events("voted")
    assert (voted["index"], voted["result"]) == (0, "=1")
    hand.finish()


@MODES
def test_a_vote_waits_for_a_thread_that_stands_before_the_one_that_would_be_shown(vote, is_async):
    hand = vote(3, is_async=is_async)
    finish_thread(hand, 1, "late =1")
    finish_thread(hand, 2, "later =1")
    assert set(ends(hand)) == {1, 2}
    finish_thread(hand, 0, "early =1")
    assert answer(hand) == f"early =1{END}"
    hand.finish()


@MODES
def test_threads_that_wait_for_a_slot_are_never_started(vote, is_async):
    hand = vote(14, is_async=is_async, num_running=8)
    for index in range(7):
        hand.say(f"r#{index}", f"=1{END}")
    hand.steps_until(lambda: not hand.scheduler.requests)
    assert ends(hand) == dict.fromkeys(range(7), "stop") | {7: "cut"} | dict.fromkeys(
        range(8, 14), "not_started"
    )
    assert [e["num_threads"] for e in hand.events("family_ended")] == [8]
    assert all(e["num_tokens"] == 0 for e in hand.events("thread_ended") if e["reason"] == "not_started")
    hand.finish()


@MODES
def test_the_answer_begins_with_the_fork_so_that_a_stream_can_tell_of_its_threads(vote, is_async):
    hand = vote(3, is_async=is_async, include_threads=True)
    of_request = [o.request_id for o in hand.outputs if o.request_id.startswith("r")]
    assert of_request[:2] == ["r#forkjoin", "r"], "its threads are announced with it"
    (begun,) = [o for o in hand.outputs if o.request_id == "r"]
    assert (begun.new_token_ids, begun.finish_reason) == ([], None)
    assert begun.prefill_stats.num_prompt_tokens == 1
    assert {e["index"] for e in hand.events("tokens")} == {0, 1, 2}
    for index in range(2):
        finish_thread(hand, index, "=1")
    assert answer(hand) == f"=1{END}"
    hand.finish()


def test_a_vote_waits_for_all_where_the_request_says_so(vote):
    hand = vote(3, wait_for_all=True)
    finish_thread(hand, 0, "=1")
    finish_thread(hand, 1, "=1")
    hand.step(3)
    assert set(ends(hand)) == {0, 1}
    finish_thread(hand, 2, "=2")
    assert ends(hand) == dict.fromkeys(range(3), "stop")
    hand.finish()


def test_every_token_of_a_cut_thread_is_counted_once(vote):
    hand = vote(3)
    finish_thread(hand, 0, "=1")
    finish_thread(hand, 1, "=1")
    (ended,) = hand.events("family_ended")
    assert ended["total_tokens"] == sum(e["num_tokens"] for e in hand.events("thread_ended"))
    assert ended["critical_path_tokens"] == max(e["num_tokens"] for e in hand.events("thread_ended"))
    shown = sum(len(o.new_token_ids) for o in hand.outputs if o.request_id == "r")
    assert ended["surplus_tokens"] == shown - ended["total_tokens"]
    hand.finish()


def test_a_thread_that_ends_without_a_vote_decides_nothing(vote):
    hand = vote(3)
    finish_thread(hand, 0, "no idea")
    finish_thread(hand, 1, "=1")
    assert ends(hand) == {0: "stop", 1: "stop", 2: "cut"}
    assert answer(hand) == f"=1{END}"
    hand.finish()


# ---- waves -------------------------------------------------------------------------------------


def started(hand):
    """The threads that have been started so far."""
    (forked,) = hand.events("forked")
    first = len(forked["threads"]) - forked["num_later"]
    return [*range(first), *(i for e in hand.events("threads_started") for i in e["threads"])]


@MODES
def test_a_vote_in_waves_starts_as_many_threads_as_decide_it_if_they_agree(vote, is_async):
    hand = vote(6, is_async=is_async, num_running=3, confidence=1.0)
    assert started(hand) == [0, 1, 2]
    assert {i for i in hand.scheduler.requests if "#" in i} == {"r#0", "r#1", "r#2"}
    for index in range(3):
        finish_thread(hand, index, "=1")
    assert ends(hand) == dict.fromkeys(range(3), "stop") | dict.fromkeys(range(3, 6), "not_started")
    assert answer(hand) == f"=1{END}"
    (ended,) = hand.events("family_ended")
    assert ended["num_threads"] == 3
    hand.finish()


@MODES
def test_a_thread_that_disagrees_lets_another_start_in_the_step_after(vote, is_async):
    hand = vote(6, is_async=is_async, num_running=3, confidence=1.0)
    finish_thread(hand, 0, "=1")
    finish_thread(hand, 1, "=2")
    assert started(hand) == [0, 1, 2, 3]
    hand.steps_until(lambda: hand.decodes("r#3"))
    finish_thread(hand, 2, "=2")
    assert started(hand) == [0, 1, 2, 3, 4]
    for index in (3, 4):
        finish_thread(hand, index, "=2")
    assert ends(hand) == dict.fromkeys(range(5), "stop") | {5: "not_started"}
    assert answer(hand) == f"=2{END}"
    hand.finish()


def test_with_less_confidence_fewer_threads_start(vote):
    hand = vote(16, num_running=3, confidence=0.95)
    assert started(hand) == [0, 1, 2]
    for index in (2, 0, 1):
        finish_thread(hand, index, "=1")
    assert not hand.scheduler.requests
    assert hand.events("voted")[0]["index"] == 0
    hand.finish()


def test_the_critical_path_of_waves_is_one_behind_the_other(vote):
    hand = vote(2, num_running=1, confidence=1.0)
    finish_thread(hand, 0, "no vote")
    hand.steps_until(lambda: hand.decodes("r#1"))
    finish_thread(hand, 1, "=1")
    (ended,) = hand.events("family_ended")
    assert ended["critical_path_tokens"] == ended["total_tokens"]
    hand.finish()


def test_threads_that_have_not_started_end_with_their_request(vote):
    hand = vote(6, num_running=3, confidence=1.0)
    hand.scheduler.finish_requests("r", RequestStatus.FINISHED_ABORTED)
    hand.step()
    assert ends(hand) == dict.fromkeys(range(6), "cancelled")
    assert [e["num_threads"] for e in hand.events("family_ended")] == [3]
    hand.finish()


def test_a_later_wave_starts_on_the_parents_blocks_though_it_lost_them_in_between(vote):
    hand = vote(4, num_running=2, confidence=1.0)
    hand.evict()
    finish_thread(hand, 0, "=1")
    finish_thread(hand, 1, "=2")
    hand.steps_until(lambda: hand.decodes("r#2"))
    hand.evict()
    finish_thread(hand, 2, "=2")
    hand.steps_until(lambda: hand.decodes("r#3"))
    finish_thread(hand, 3, "=1")
    assert answer(hand) == f"=1{END}"
    hand.finish()


def test_waves_take_their_first_width_of_the_room_for_families(vote):
    hand = vote(8, num_running=4, confidence=1.0)
    (admitted,) = hand.scheduler._gate.admitted.values()
    assert (admitted.need.asked, admitted.need.abreast) == (8, 4)
    hand.scheduler.finish_requests("r", RequestStatus.FINISHED_ABORTED)
    hand.finish()


# ---- pruning -----------------------------------------------------------------------------------


@MODES
def test_threads_that_a_policy_stops_have_no_vote_and_say_so(vote, is_async):
    hand = vote(5, is_async=is_async, prune="agreement")
    for index, text in enumerate(["=1", "=2", "=1", "=1", "=1"]):
        hand.say(f"r#{index}", text)
    hand.steps_until(lambda: set(ends(hand)) == {1, 2, 3, 4})
    assert set(ends(hand).values()) == {"pruned"}
    assert all(96 <= e["num_tokens"] <= 106 for e in hand.events("thread_ended"))
    finish_thread(hand, 0, "")
    (voted,) = hand.events("voted")
    assert (voted["index"], voted["result"]) == (0, "=1")
    (ended,) = hand.events("family_ended")
    assert ended["total_tokens"] == sum(e["num_tokens"] for e in hand.events("thread_ended"))
    hand.finish()


class StopsAll(Pruning):
    """Stops whatever runs, at once."""

    ask_every = 0

    def stop(self, facts):
        return {t.sibling_index for t in facts.running}


@MODES
def test_where_a_policy_stops_all_one_goes_on_and_is_the_answer(vote, is_async, monkeypatch):
    monkeypatch.setitem(POLICIES, "memory", StopsAll)
    hand = vote(3, is_async=is_async, prune="memory", num_running=1)
    assert ends(hand) == {1: "pruned", 2: "pruned"}
    finish_thread(hand, 0, "no vote")
    assert answer(hand) == f"no vote{END}"
    hand.finish()


@MODES
def test_a_wave_whose_threads_are_all_stopped_gives_way_to_the_next(vote, is_async, monkeypatch):
    monkeypatch.setitem(POLICIES, "memory", StopsAll)
    hand = vote(3, is_async=is_async, prune="memory", confidence=1.0)
    assert ends(hand) == {0: "pruned", 1: "pruned"}
    finish_thread(hand, 2, "=7")
    assert answer(hand) == f"=7{END}"
    hand.finish()


class CanNotBeMade(Pruning):
    def __init__(self):
        raise RuntimeError("a fault for a test")


class Raises(Pruning):
    ask_every = 0

    def stop(self, facts):
        raise RuntimeError("a fault for a test")


@pytest.mark.parametrize("policy", [CanNotBeMade, Raises])
def test_a_vote_goes_on_without_a_policy_that_raises(vote, monkeypatch, policy):
    monkeypatch.setitem(POLICIES, "memory", policy)
    hand = vote(3, prune="memory", allowed_errors={"prune"})
    for index in range(2):
        finish_thread(hand, index, "=1")
    assert [e["where"] for e in hand.events("internal_error")] == ["prune"]
    assert answer(hand) == f"=1{END}"
    hand.finish()


# ---- at random, and on a model ----------------------------------------------------------------


@pytest.mark.usefixtures("clock")
def test_whatever_happens_a_vote_that_ends_early_answers_as_one_that_waits_for_all(tier):
    """Without interruption, and with all its threads side by side, in the runs that it is compared with."""
    from tests.engine.random_drive import compared

    num_compared = num_cut = 0
    for seed in range(NUM_SEEDS[tier]):
        drive, calm, counts = compared("explicit", "votes", seed, EMBEDDED_MODEL)
        num_compared += counts[0]
        num_cut += drive.seen.threads_cut
        assert not calm.seen.threads_cut
    assert num_compared > 2 * NUM_SEEDS[tier]
    assert num_cut > NUM_SEEDS[tier]


def test_on_a_model_a_vote_that_ends_early_writes_less_and_answers_the_same(events):
    """With fewer slots than threads, at a temperature, each vote with a seed of its own."""
    from tests.engine.harness import Engine

    engine = Engine(load("explicit"), max_num_seqs=4, max_model_len=1024)
    prompts = [engine.prompt(text) for text in ("a=48*36", "a=7*8, b=12*34", "a=57*18")]

    def ask(**asked):
        forkjoin = {"best_of": 9, "vote": r"total ends in (?P<result>\d)", **asked}
        options = {"temperature": 1.0, "max_tokens": 200, "forkjoin": forkjoin}
        params = [engine.params(**options, seed=seed) for seed in range(len(prompts))]
        before = len(events("family_ended"))
        answers = engine.run(prompts, params)
        assert engine.snapshot() == engine.baseline
        return [a.token_ids for a in answers], sum(e["total_tokens"] for e in events("family_ended")[before:])

    early, num_early = ask()
    waves, num_waves = ask(confidence=1.0)
    whole, num_whole = ask(wait_for_all=True)
    assert early == waves == whole
    assert num_waves < 0.9 * num_whole
    assert num_early < 0.9 * num_whole
    reasons = {e["reason"] for e in events("thread_ended")}
    assert {"cut", "not_started"} & reasons


def test_on_a_model_a_policy_hears_how_sure_threads_are_and_answers_show_nothing_of_it(events, monkeypatch):
    from tests.engine.harness import Engine

    class Told(Pruning):
        """Stops the least sure of those that run, once each has written eight tokens."""

        num_logprobs, window, ask_every = 20, 8, 1
        told: ClassVar[list[VoteFacts]] = []

        def stop(self, facts):
            self.told.append(facts)
            if len(facts.running) < 4 or any(t.written < 8 for t in facts.running):
                return set()
            return {min(facts.running, key=lambda t: t.confidence).sibling_index}

    monkeypatch.setitem(POLICIES, "confidence", Told)
    engine = Engine(load("explicit"), max_num_seqs=8, max_model_len=1024)
    prompt = engine.prompt("a=48*36, b=57*18")

    def ask(**options):
        forkjoin = {"best_of": 4, "vote": r"total ends in (?P<result>\d)"} | options.pop("forkjoin", {})
        params = engine.params(temperature=1.0, max_tokens=120, seed=5, forkjoin=forkjoin, **options)
        (answer,) = engine.run([prompt], params)
        assert engine.snapshot() == engine.baseline
        return answer

    plain = ask(forkjoin={"wait_for_all": True}, logprobs=2)
    (before,) = events("voted")
    pruned, counted = ask(forkjoin={"prune": "confidence"}), ask(forkjoin={"prune": "confidence"}, logprobs=2)
    ends = [e for e in events("thread_ended")[4:8] if e["reason"] == "pruned"]
    assert len(ends) == 1
    assert (pruned.token_ids, pruned.logprobs) == (counted.token_ids, [])
    assert all(len(row) <= 3 for row in counted.logprobs)
    # of the same thread the same text, with the same logprobs
    if ends[0]["index"] != before["index"] and events("voted")[-1]["index"] == before["index"]:
        assert counted.token_ids == plain.token_ids
        assert counted.logprobs == plain.logprobs
    last = Told.told[-1].running
    # -log p, in the mean of twenty alternatives: more than that of twenty as likely
    assert all(t.confidence >= math.log(20) for t in last if t.written)
