"""A client cancels one thread, on the real scheduler without a model.

Each step checks the engine's invariants (``invariants.py``) and the KV that is read (``kv_oracle.py``).
"""

from __future__ import annotations

import pytest
from vllm.v1.request import RequestStatus

from forkjoin_scheduler.dialects.dialect import Dialect
from forkjoin_scheduler.dialects.files import load
from forkjoin_scheduler.families.thread_end import ThreadEnd
from forkjoin_scheduler.joins.kinds import make_join
from forkjoin_scheduler.machine.cancelling import CANCELLING, UNKNOWN, ask
from forkjoin_scheduler.request.visits import TENANT
from tests.engine import renamed
from tests.server.asking import worksheet
from tests.tiers import Tier

pytestmark = pytest.mark.engine

#: Of each dialect.
NUM_SEEDS = {Tier.FIRST: 2, Tier.CI: 8, Tier.ALL: 25}
MODES = pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
#: The id of the request, which is the key that its threads are found by, too.
R = "fj" + "0" * 32
GOAL = "<Goal><Outline>1: a</Outline><Outline>2: b</Outline></Goal>"
OUTLINES = "<Outlines><Outline>1: a</Outline><Outline>2: b</Outline></Outlines>"
#: Of a dialect whose joins are prefilled, and of one whose joins are stitched: what forks, what ends a thread.
JOINED = pytest.mark.parametrize(
    ("name", "fork", "end"), [("threadweaver", OUTLINES, "</Thread>"), ("multiverse", GOAL, "</Path>")]
)


@pytest.fixture
def drive(model_of):
    from tests.engine.by_hand import ByHand

    def make(dialect: str | Dialect, **options):
        dialect = load(dialect) if isinstance(dialect, str) else dialect
        hand = ByHand(dialect, model_of(dialect.name), **options)
        hand.add(R, "q")
        return hand

    return make


def nested(name, **join):
    """A dialect whose threads may fork."""
    dialect = load(name)
    joined = make_join(**dialect.join.model_dump() | join)
    return Dialect.model_validate(dialect.model_dump() | {"join": joined.model_dump(), "max_depth": 3})


def cancel(hand, index, tenant=""):
    return hand.scheduler.cancel_thread(R, index, tenant)


def ends(hand):
    return {e["index"]: e["reason"] for e in hand.events("thread_ended")}


def thread(index):
    return f"{R}#{index}"


def finish(hand):
    hand.steps_until(lambda: hand.decodes(R))
    hand.say(R, "<|end|>")
    hand.finish()


@MODES
@JOINED
@pytest.mark.parametrize("index", [0, 1])
def test_what_a_cancelled_thread_wrote_is_closed_and_joined_with_the_others(
    drive, name, fork, end, index, is_async
):
    hand = drive(name, is_async=is_async)
    hand.say(R, fork)
    hand.steps_until(lambda: hand.decodes(thread(0)) and hand.decodes(thread(1)))
    hand.say(thread(index), "broken off")
    hand.step(12)
    assert cancel(hand, index) == CANCELLING
    assert cancel(hand, index) == CANCELLING
    hand.steps_until(lambda: index in ends(hand))
    assert cancel(hand, index) == "client_cancelled"
    hand.say(thread(1 - index), f"whole{end}")
    finish(hand)
    assert ends(hand) == {index: "client_cancelled", 1 - index: "stop"}
    text = hand.text(R)
    assert "broken off" in text
    assert "whole" in text
    assert text.count(end) == 2
    assert len(hand.events("joined")) == 1


@MODES
@JOINED
def test_an_answer_whose_threads_are_all_cancelled_goes_on_behind_them(drive, name, fork, end, is_async):
    hand = drive(name, is_async=is_async)
    hand.say(R, fork)
    hand.steps_until(lambda: hand.decodes(thread(1)))
    for index in (1, 0):
        assert cancel(hand, index) == CANCELLING
    finish(hand)
    assert ends(hand) == dict.fromkeys((0, 1), "client_cancelled")
    assert hand.text(R).count(end) == 2


@MODES
@JOINED
def test_a_thread_that_has_forked_is_cancelled_with_its_threads_and_loses_nothing(
    drive, name, fork, end, is_async
):
    hand = drive(nested(name), is_async=is_async)
    hand.say(R, fork)
    hand.steps_until(lambda: hand.decodes(thread(0)) and hand.decodes(thread(1)))
    hand.say(thread(1), "outer" + fork)
    hand.steps_until(lambda: hand.decodes(thread(2)))
    hand.say(thread(2), "left" + fork)
    hand.say(thread(3), "right")
    hand.steps_until(lambda: hand.decodes(thread(4)))
    hand.say(thread(4), "deep")
    hand.step(8)
    assert cancel(hand, 1) == CANCELLING
    hand.steps_until(lambda: len(ends(hand)) == 5)
    assert hand.decodes(thread(0)), "its sibling goes on"
    hand.say(thread(0), f"whole{end}")
    finish(hand)
    assert ends(hand) == {0: "stop"} | dict.fromkeys(range(1, 6), "client_cancelled")
    places = [hand.text(R).index(word) for word in ("whole", "outer", "left", "deep", "right")]
    assert places == sorted(places)


@MODES
@JOINED
def test_a_thread_within_a_thread_is_cancelled_alone(drive, name, fork, end, is_async):
    hand = drive(nested(name), is_async=is_async)
    hand.say(R, fork)
    hand.steps_until(lambda: hand.decodes(thread(0)) and hand.decodes(thread(1)))
    hand.say(thread(0), fork)
    hand.steps_until(lambda: hand.decodes(thread(2)) and hand.decodes(thread(3)))
    assert cancel(hand, 3) == CANCELLING
    hand.say(thread(2), end)
    hand.steps_until(lambda: hand.decodes(thread(0)))
    for index in (0, 1):
        hand.say(thread(index), end)
    finish(hand)
    assert ends(hand) == {0: "stop", 1: "stop", 2: "stop", 3: "client_cancelled"}


@MODES
def test_a_thread_that_waits_for_a_slot_never_starts(drive, is_async):
    hand = drive("threadweaver", is_async=is_async)
    outlines = "".join(f"<Outline>{n}: a</Outline>" for n in range(1, 11))
    hand.say(R, f"<Outlines>{outlines}</Outlines>")
    hand.steps_until(lambda: hand.decodes(thread(7)))
    assert hand.request(thread(9)).status == RequestStatus.WAITING
    assert cancel(hand, 9) == CANCELLING
    hand.steps_until(lambda: 9 in ends(hand))
    assert not [o for o in hand.outputs if o.request_id == thread(9)]
    for index in range(9):
        hand.say(thread(index), "</Thread>")
    finish(hand)
    assert ends(hand) == dict.fromkeys(range(9), "stop") | {9: "client_cancelled"}


@MODES
@JOINED
def test_a_thread_that_was_preempted_is_joined_with_what_it_had_written(drive, name, fork, end, is_async):
    hand = drive(name, is_async=is_async)
    hand.say(R, fork)
    hand.steps_until(lambda: hand.decodes(thread(0)) and hand.decodes(thread(1)))
    hand.say(thread(0), "kept")
    hand.step(8)
    hand.preempt(thread(0))
    assert cancel(hand, 0) == CANCELLING
    hand.steps_until(lambda: 0 in ends(hand))
    hand.say(thread(1), end)
    finish(hand)
    assert "kept" in hand.text(R)


@MODES
@pytest.mark.parametrize("num_steps", range(5))
def test_a_thread_whose_family_is_restored_waits_with_its_end_until_the_others_have_their_kv(
    drive, num_steps, is_async
):
    """Else its parent joins it with one whose KV is not there yet."""
    hand = drive("multiverse", is_async=is_async)
    hand.say(R, GOAL)
    hand.steps_until(lambda: hand.decodes(thread(0)) and hand.decodes(thread(1)))
    hand.say(thread(0), "abc</Path>")
    hand.steps_until(lambda: 0 in ends(hand))
    hand.step(3)
    hand.evict()
    if num_steps:
        hand.scheduler._eviction.restore_next()
        hand.step(num_steps)
    assert cancel(hand, 1) == CANCELLING
    hand.scheduler._eviction.restore_next()
    finish(hand)
    assert ends(hand) == {0: "stop", 1: "client_cancelled"}
    assert hand.oracle.num_compared_stitched


@MODES
@pytest.mark.parametrize("asks", [False, True], ids=["beside", "waited for"])
def test_where_the_parent_asks_for_results_a_cancelled_thread_has_none(drive, asks, is_async):
    hand = drive("asyncthink", is_async=is_async)
    hand.say(R, "<FORK-1>do</FORK-1><FORK-2>do</FORK-2>")
    hand.steps_until(lambda: hand.decodes(thread(1)))
    if asks:
        hand.say(R, "<JOIN-1>")
        hand.steps_until(lambda: hand.scheduler.num_waiting_for_streaming_input == 1)
    assert cancel(hand, 0) == CANCELLING
    hand.steps_until(lambda: 0 in ends(hand))
    assert hand.decodes(thread(1)), "the other goes on"
    if asks:
        hand.steps_until(lambda: hand.events("joined"))
    finish(hand)
    assert ends(hand)[0] == "client_cancelled"


@MODES
def test_where_the_parent_goes_on_beside_them_the_others_do_too(drive, is_async):
    hand = drive("apar", is_async=is_async)
    hand.say(R, "abc[SplitMask]")
    hand.steps_until(lambda: hand.decodes(thread(0)))
    hand.say(thread(0), "cut here")
    hand.step(12)
    assert cancel(hand, 0) == CANCELLING
    hand.steps_until(lambda: 0 in ends(hand))
    assert hand.decodes(R)
    finish(hand)
    assert "cut here" in hand.text(R)


@MODES
def test_a_cancelled_thread_has_no_vote_and_is_no_answer(model_of, is_async):
    from tests.engine.by_hand import ByHand

    hand = ByHand(load("explicit"), model_of("explicit"), is_async=is_async, filler="y")
    hand.add(R, "q", forkjoin={"best_of": 3, "vote": r"=\d"})
    hand.steps_until(lambda: hand.decodes(thread(2)))
    hand.say(thread(0), "=1")
    hand.step(6)
    assert cancel(hand, 0) == CANCELLING
    hand.steps_until(lambda: 0 in ends(hand))
    for index in (1, 2):
        hand.say(thread(index), "=2<|end|>")
    hand.finish()
    (voted,) = hand.events("voted")
    assert (voted["index"], voted["result"]) == (1, "=2")
    assert ends(hand) == {0: "client_cancelled", 1: "stop", 2: "stop"}


@pytest.mark.parametrize("is_last", [False, True])
def test_a_vote_whose_wave_is_cancelled_starts_the_next(model_of, is_last):
    from tests.engine.by_hand import ByHand

    hand = ByHand(load("explicit"), model_of("explicit"), filler="y")
    hand.add(R, "q", forkjoin={"best_of": 4, "vote": r"=\d", "confidence": 1})
    hand.steps_until(lambda: hand.decodes(thread(1)))
    later = [t.index for t in hand.live().later]
    assert later, "some wait for the first wave"
    started = [i for i in range(4) if i not in later]
    cancelled = [*later, *started] if is_last else started
    for index in cancelled:
        assert cancel(hand, index) == CANCELLING
    if not is_last:
        hand.steps_until(lambda: hand.decodes(thread(later[0])))
        for index in later:
            hand.say(thread(index), "=3<|end|>")
    hand.finish()
    assert ends(hand).items() >= dict.fromkeys(started, "client_cancelled").items()
    (ended,) = hand.events("family_ended")
    assert ended["num_threads"] == sum(reason != "not_started" for reason in ends(hand).values())
    assert [e["result"] for e in hand.events("voted")] == [None if is_last else "=3"]


def test_only_its_tenant_may_cancel_a_thread_and_only_while_its_request_runs(drive):
    hand = drive("threadweaver")
    assert cancel(hand, 0) == UNKNOWN
    hand.request(R).sampling_params.extra_args[TENANT] = {"id": "alice", "weight": 1.0}
    hand.say(R, OUTLINES)
    hand.steps_until(lambda: hand.decodes(thread(1)))
    assert [cancel(hand, 0, tenant) for tenant in ("", "bob")] == [UNKNOWN, UNKNOWN]
    assert [cancel(hand, index, "alice") for index in (-1, 2)] == [UNKNOWN, UNKNOWN]
    hand.say(thread(0), "</Thread>")
    hand.steps_until(lambda: ends(hand))
    assert cancel(hand, 0, "alice") == "stop"
    assert cancel(hand, 1, "alice") == CANCELLING
    hand.scheduler.finish_requests(R, RequestStatus.FINISHED_ABORTED)
    assert cancel(hand, 1, "alice") == UNKNOWN
    hand.finish()


def test_a_thread_of_a_paused_engine_ends_without_running(drive):
    hand = drive("threadweaver")
    hand.say(R, OUTLINES)
    hand.steps_until(lambda: hand.decodes(thread(1)))
    hand.pause()
    num_tokens = hand.request(thread(1)).num_tokens
    assert cancel(hand, 1) == CANCELLING
    hand.step(2)
    (ended,) = hand.events("thread_ended")
    assert ended["num_tokens"] <= num_tokens
    hand.go_on()
    hand.say(thread(0), "</Thread>")
    finish(hand)


@pytest.mark.parametrize("name", renamed.NO_VARIANTS)
def test_random_traffic_with_cancelled_threads_leaves_nothing_behind(model_of, clock, tier, name):
    from tests.engine.random_drive import compared

    num_cancelled = 0
    for seed in range(2 * NUM_SEEDS[Tier.ALL]):
        if seed >= NUM_SEEDS[tier] and num_cancelled:
            break  # few seeds may cancel none of a dialect that seldom forks
        drive, _, _ = compared(name, "cancels", seed, model_of(name))
        num_cancelled += len(drive.seen.cancelled)
    assert num_cancelled


@pytest.mark.parametrize("is_restarted", [False, True], ids=["decoding", "restored"])
@pytest.mark.parametrize("index", [0, 1, 2])
def test_an_answer_of_the_model_is_what_its_transcript_with_the_cut_thread_makes_it(
    engine, index, is_restarted
):
    """The reference joins by hand what the thread had written, closed; a plain request goes on from there."""
    prompt = engine.prompt(worksheet(3).prompt)
    request_id = engine.add(prompt, engine.params())
    live_of = engine.scheduler._core.live
    engine.step_until(lambda: any(live.family.threads for live in live_of.values()))
    (live,) = live_of.values()
    cut = live.family.threads[index]
    engine.step_until(lambda: cut.num_generated >= 30)
    if is_restarted:
        engine.scheduler.reset_prefix_cache(reset_running_requests=True)
    assert ask(live, index) == CANCELLING
    answer = engine.drain()[request_id]
    assert cut.end is ThreadEnd.CLIENT_CANCELLED
    others = [thread for thread in live.family.threads if thread is not cut]
    assert all(cut.num_generated < thread.num_generated for thread in others)
    assert [answer.token_ids] == engine.reference([prompt], cancelled={index: cut.num_generated})
