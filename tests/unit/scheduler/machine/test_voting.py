"""Votes, played by hand: whose answer leaves, who is cut, who starts in a later wave, who is stopped."""

from __future__ import annotations

import pytest

from forkjoin_scheduler.dialects.limits import Limits
from forkjoin_scheduler.policy.pruning import Pruning
from forkjoin_scheduler.publish.events import Limited, Progress, ThreadEnded, ThreadsStarted, Voted
from forkjoin_scheduler.request.options import CompiledOptions
from tests.unit.scheduler.machine.stepping import Play


def vote(best_of: int, *, policy: Pruning | None = None, **fields) -> Play:
    """A vote that has forked: its threads vote by their last digit."""
    request = {name: fields.pop(name) for name in ("max_tokens", "stop") if name in fields}
    prune = None if policy is None else "own"
    options = CompiledOptions(best_of=best_of, vote="[0-9]", prune=prune, **fields)
    play = Play(options=options, **request)
    play.stage.prune_policy = policy
    play.step(root="dropped")
    return play


def ends(play: Play) -> dict[int, str]:
    return {e.index: e.reason.value for e in play.told(ThreadEnded)}


def voted(play: Play) -> list[tuple[int, str | None]]:
    return [(e.index, e.result) for e in play.told(Voted)]


def kept(*threads: int) -> list[str]:
    """What is done about threads that end by themselves."""
    return [effect for i in threads for effect in (f"Keep t{i}", "PrefillFinishedThreads root")]


def test_a_vote_that_is_decided_cuts_the_others_and_shows_the_first_with_its_result():
    play = vote(3)
    assert play.done() == ["Park root", "Start t0", "Start t1", "Start t2"]
    play.step(t0="is 7\0", t1="not", t2="7\0")
    assert play.done() == [*kept(0, 2), "Forget t1", "EndFamily stop"]
    assert (play.answer, play.finish) == ("is 7\0", "stop")
    assert voted(play) == [(0, "7")]
    assert ends(play) == {0: "stop", 2: "stop", 1: "cut"}


def test_nothing_of_a_vote_leaves_before_it_is_decided():
    play = vote(3)
    play.step(t0="4\0", t1="7\0")
    assert play.answer == ""
    play.step(t2="so 7\0")
    assert (play.answer, play.finish, voted(play)) == ("7\0", "stop", [(1, "7")])


def test_a_vote_that_waits_for_all_cuts_nobody():
    play = vote(3, wait_for_all=True)
    play.step(t0="7\0", t1="7\0")
    assert play.finish is None
    play.step(t2="4\0")
    assert (play.answer, play.finish) == ("7\0", "stop")


def test_a_thread_that_has_not_written_and_is_cut_never_started():
    play = vote(3)
    play.step(t0="7\0", t1="7\0")
    assert ends(play)[2] == "not_started"


def test_a_vote_starts_as_many_as_decide_it_and_more_where_they_disagree():
    play = vote(5, confidence=1.0)
    assert play.done()[1:] == ["Start t0", "Start t1", "Start t2"]
    play.step(t0="a 7\0")
    assert play.done() == kept(0), "two more like it decide the vote"
    play.step(t1="4\0", t2="x")
    assert play.done() == [*kept(1), "Start t3"]
    assert [(e.parent_index, e.threads) for e in play.told(ThreadsStarted)] == [(-1, [3])]
    assert play.machine.family.threads[3].num_critical == 4, (
        "it was waited with for the longest that has ended"
    )
    assert play.machine.counts(Progress).num_threads == 4
    play.step(t2="7\0", t3="7\0")
    assert play.machine.counts(Progress).num_threads == 4, "the fifth has never run"
    assert play.done() == [*kept(2, 3), "Forget t4", "EndFamily stop"]
    assert (play.answer, voted(play), ends(play)[4]) == ("a 7\0", [(0, "7")], "not_started")


def test_a_vote_ends_when_its_leader_wins_with_the_confidence_that_is_asked_for():
    play = vote(5, confidence=0.8)
    started = play.done()[1:]
    play.step(**{name.removeprefix("Start "): "7\0" for name in started})
    assert (play.finish, play.answer) == ("stop", "7\0")
    assert len(started) < 3


def test_of_threads_that_all_ran_out_of_tokens_the_first_with_the_result_is_the_answer_and_cut():
    play = vote(3, max_tokens=2)
    play.step(t0="x4", t1="y7", t2="7\0")
    assert (play.answer, play.finish, voted(play)) == ("y7", "length", [(1, "7")])


def test_a_thread_of_a_vote_has_as_many_tokens_as_an_answer_has():
    play = vote(3, max_tokens=7)
    assert [play.stage.left[t] for t in play.machine.family.threads] == [7, 7, 7]
    assert play.machine.family.max_tokens == 21


@pytest.mark.parametrize(
    ("wrote", "answer", "expected"),
    [
        ({"t0": "x", "t1": "4\0", "t2": "7\0", "t3": "y"}, "4", (1, "4")),
        ({"t0": "x", "t1": "uvw", "t3": "y"}, "x", (0, None)),
        ({"t1": "uvw", "t3": "xy"}, "uvw", (1, None)),
    ],
)
def test_of_a_vote_that_is_cut_what_most_have_is_the_answer_or_what_the_first_wrote(wrote, answer, expected):
    options = CompiledOptions(best_of=4, vote="[0-9]")
    play = Play(options=options, limits=Limits(max_total_tokens=sum(map(len, wrote.values()))))
    play.step(root="dropped")
    play.step(**wrote)
    assert (play.finish, voted(play)) == ("length", [expected])
    assert play.answer == answer
    assert [e.reason for e in play.told(Limited)] == ["total_tokens"]


# ---- cancelled ------------------------------------------------------------------------------


def test_a_thread_that_its_client_cancels_has_no_vote():
    play = vote(3)
    play.step(t0="so 4")
    play.done()
    play.cancel(0)
    play.step(t0="x")
    assert play.done() == ["Forget t0"]
    play.step(t1="7\0")
    assert play.done() == [*kept(1), "Forget t2", "EndFamily stop"], "the only other can only tie, behind it"
    assert (play.answer, voted(play)) == ("7\0", [(1, "7")])
    assert ends(play)[0] == "client_cancelled"


def test_one_that_has_not_started_is_cancelled_and_never_does():
    play = vote(5, confidence=1.0)
    play.done()
    play.cancel(3)
    play.step(t0="7\0")
    assert play.done() == [*kept(0), "Forget t3"]
    assert ends(play)[3] == "not_started"
    play.step(t1="4\0")
    assert play.done() == kept(1), "another 7 decides it"
    play.step(t2="4\0")
    assert play.done() == [*kept(2), "Start t4"]


def test_a_vote_whose_first_wave_is_cancelled_starts_the_others():
    play = vote(3, confidence=1.0)
    play.done()
    play.cancel(0)
    play.cancel(1)
    play.step()
    assert play.done() == ["Forget t0", "Forget t1", "Start t2"]
    play.step(t2="7\0")
    assert (play.answer, play.finish, voted(play)) == ("7\0", "stop", [(2, "7")])


def test_a_vote_of_which_all_are_cancelled_ends_cut():
    play = vote(2)
    play.cancel(0)
    play.cancel(1)
    play.step(t0="x", t1="y")
    assert play.finish == "length"
    assert play.answer == "x"


# ---- pruned ---------------------------------------------------------------------------------


class Stops(Pruning):
    """Stops the threads at these positions, as soon as they have written."""

    ask_every = 0

    def __init__(self, *positions: int) -> None:
        self._positions = set(positions)
        self.seen = []

    def stop(self, facts):
        self.seen.append(facts)
        return {t.sibling_index for t in facts.running if t.written} & self._positions


def test_a_policy_stops_threads_and_the_vote_goes_on_without():
    policy = Stops(1)
    play = vote(3, policy=policy)
    play.step(t0="x", t1="y")
    assert play.done()[4:] == ["Forget t1"]
    assert ends(play) == {1: "pruned"}
    assert [(t.sibling_index, t.written, t.confidence) for t in policy.seen[-1].running] == [
        (0, 1, 1.0),
        (1, 1, 1.0),
        (2, 0, None),
    ]
    play.step(t0="7\0")
    assert play.answer == "x7\0"


def test_where_nobody_has_voted_the_one_that_has_written_most_is_spared():
    play = vote(3, policy=Stops(0, 1, 2))
    play.step(t0="x", t1="yz", t2="u")
    assert play.done()[4:] == ["Forget t0", "Forget t2"]
    play.step(t1="\0")
    assert play.finish == "stop"


def test_a_policy_is_asked_about_those_that_run_and_not_about_those_that_may_start_later():
    policy = Stops(0, 1, 2, 3, 4)
    play = vote(5, policy=policy, confidence=1.0)
    play.done()
    play.step(t0="x", t1="y", t2="z")
    assert [t.sibling_index for t in policy.seen[0].running] == [0, 1, 2]
    assert play.done() == ["Forget t0", "Forget t1", "Forget t2", "Start t3"]
    assert play.machine.later == play.machine.family.threads[4:], "one vote decides now"


def test_a_policy_is_asked_each_time_those_that_run_have_written_so_much():
    policy = Stops()
    policy.ask_every = 2
    play = vote(5, policy=policy, confidence=1.0)
    play.step(t0="ab", t1="cd", t2="e")
    assert policy.seen == []
    play.step(t2="f")
    assert len(policy.seen) == 1, "each of three"
    play.step(t0="g", t1="hi", t2="jk")
    assert len(policy.seen) == 1


def test_a_policy_that_raises_is_asked_no_more():
    class Broken(Pruning):
        ask_every = 0

        def stop(self, facts):
            raise SystemExit("no")

    play = vote(3, policy=Broken())
    play.step(t0="x")
    assert play.stage.blamed == ["own: no"]
    play.step(t0="7\0", t1="7\0")
    assert play.stage.blamed == ["own: no"]
    assert (play.answer, play.finish) == ("x7\0", "stop")


def test_a_thread_that_goes_on_has_what_it_had_written_left_off_its_own_tokens():
    play = vote(2, max_tokens=5)
    family = play.machine.family
    family.generated(family.threads[0], [7, 7])
    assert [play.machine.budget(thread, 100) for thread in family.threads] == [3, 5]
