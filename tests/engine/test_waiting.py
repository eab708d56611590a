"""What a client that listens is told of threads that wait, on the real scheduler without a model."""

from __future__ import annotations

import pytest
from vllm.sampling_params import RequestOutputKind

from forkjoin_scheduler.dialects.files import load
from forkjoin_server.start.configuration import EMBEDDED_MODEL

pytestmark = pytest.mark.engine

MODES = pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
END = "<|end|>"
SHOWN = {"include_threads": True}
VOTE = {"best_of": 6, "vote": r"=\d", "confidence": 1.0}
IN_TURN = {"branches": [{"text": text} for text in "abc"], "max_threads_running": 1}


@pytest.fixture
def forked():
    """A request that has forked; its first thread runs."""
    from tests.engine.by_hand import ByHand

    def start(forkjoin, *, is_async=False, is_v2=False, **params):
        hand = ByHand(load("explicit"), EMBEDDED_MODEL, is_async=is_async, filler="y")
        hand.scheduler.use_v2_model_runner = is_v2
        hand.add("r", "q", forkjoin=forkjoin, **params)
        hand.steps_until(lambda: hand.decodes("r#0"))
        return hand

    return start


def waits(hand):
    """What each thread was told to wait for, in turn."""
    told = {}
    for event in hand.events("waiting"):
        told.setdefault(event["index"], []).append(event["waits_for"])
    return told


def end(hand, index, text=""):
    hand.say(f"r#{index}", text + END)
    hand.steps_until(lambda: index in {e["index"] for e in hand.events("thread_ended")})


@MODES
def test_threads_beyond_a_limit_wait_for_their_turn_until_they_run(forked, is_async):
    hand = forked(IN_TURN | SHOWN, is_async=is_async)
    assert waits(hand) == {1: ["turn"], 2: ["turn"]}
    end(hand, 0)
    hand.steps_until(lambda: hand.decodes("r#1"))
    assert waits(hand) == {1: ["turn", None], 2: ["turn"]}
    hand.step(20)
    assert waits(hand) == {1: ["turn", None], 2: ["turn"]}, "each is told once"
    for index in (1, 2):
        end(hand, index)
    hand.finish()


@MODES
def test_threads_of_a_later_wave_wait_for_it_and_those_that_it_does_not_need_end(forked, is_async):
    hand = forked(VOTE | SHOWN, is_async=is_async)
    assert waits(hand) == {3: ["wave"], 4: ["wave"], 5: ["wave"]}
    end(hand, 0, "=1")
    end(hand, 1, "=2")
    hand.steps_until(lambda: hand.decodes("r#3"))
    assert waits(hand)[3] == ["wave", None]
    for index in (2, 3):
        end(hand, index, "=1")
    hand.finish()
    assert waits(hand) == {3: ["wave", None], 4: ["wave"], 5: ["wave"]}
    assert {e["index"] for e in hand.events("thread_ended") if e["reason"] == "not_started"} == {4, 5}


def test_a_thread_that_loses_its_blocks_for_a_step_is_not_told_to_wait(forked):
    hand = forked(VOTE | SHOWN | {"best_of": 3})
    hand.steps_until(lambda: hand.decodes("r#1"))
    before = waits(hand)
    hand.preempt("r#1")
    hand.steps_until(lambda: hand.decodes("r#1"))
    assert waits(hand) == before
    for index in (0, 1, 2):
        if f"r#{index}" in hand.scheduler.requests:
            end(hand, index, "=1")
    hand.finish()


def test_a_thread_that_may_not_decode_before_the_next_step_runs_in_this_one(forked):
    """The V2 runner's steps are counted so for every thread that one computes."""
    hand = forked(VOTE | SHOWN | {"best_of": 3}, is_async=True, is_v2=True)
    hand.steps_until(lambda: hand.decodes("r#1"))
    request = hand.request("r#1")
    assert request.next_decode_eligible_step > hand.scheduler.current_step
    (row,) = hand.scheduler.overview()["families"]
    assert row["threads"] == {"running": 2, "waiting": 1, "parked": 0, "ended": 0}
    assert waits(hand) == {2: ["wave"]}
    for index in (0, 1):
        end(hand, index, "=1")
    hand.finish()


@pytest.mark.parametrize(
    ("shown", "params"),
    [({}, {}), (SHOWN, {"output_kind": RequestOutputKind.FINAL_ONLY})],
    ids=["not_asked_for", "not_streamed"],
)
def test_who_does_not_listen_costs_nothing(forked, shown, params):
    hand = forked(IN_TURN | shown, **params)
    assert hand.live().waits is None
    assert waits(hand) == {}
    for index in range(3):
        end(hand, index)
    hand.finish()
