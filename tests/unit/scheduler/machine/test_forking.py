"""Forks behind the prompt, played by hand: of a dialect, and of a request that names its branches."""

from __future__ import annotations

import pytest

from forkjoin_scheduler.dialects.limits import Limits
from forkjoin_scheduler.families.thread_end import ThreadEnd
from forkjoin_scheduler.publish.events import (
    Forked,
    Progress,
    Refused,
    ThreadEnded,
    ThreadsStarted,
    Tolerated,
)
from forkjoin_scheduler.request.options import CompiledBranch, CompiledOptions
from tests.unit.scheduler.machine.stepping import Play


def branches(*texts: str, closing: str | None = None, **fields) -> CompiledOptions:
    named = [CompiledBranch(f"title {t}", list(map(ord, t))) for t in texts]
    ids = None if closing is None else list(map(ord, closing))
    return CompiledOptions(branches=named, closing=ids, **fields)


def test_a_dialect_forks_behind_the_prompt_before_anything_is_written(make_dialect):
    thread = {"header": "<T>{n}:", "end": "</T{n}>"}
    dialect = make_dialect(fork_at="prompt", trigger=None, thread=thread, join={"kind": "stitch"})
    play = Play(dialect)
    play.step(root="dropped")
    assert play.done() == ["Park root", "Start t0", "Start t1", "ShareTail root"]
    assert [play.text(t) for t in play.machine.family.threads] == ["Q<T>1:", "Q<T>2:"]
    play.step(t0="u</T1>", t1="x</T2>")
    assert play.done()[-1] == "Resume root <T>1:u</T1><T>2:x</T2><J>"
    play.step(root="b\0")
    assert (play.answer, play.finish) == ("<T>1:u</T1><T>2:x</T2><J>b\0", "stop")


def test_a_prompt_that_may_not_fork_is_answered_in_a_row(make_dialect):
    play = Play(make_dialect(fork_at="prompt", trigger=None, limits={"max_forks": 0}))
    play.step(root="dropped")
    assert play.done() == ["WillNotJoin root", "SampleAgain root"]
    play.step(root="a\0")
    assert (play.done(), play.answer, play.finish) == ([], "a\0", "stop")


def test_a_prompt_that_may_not_fork_is_refused(make_dialect):
    policies = {"too_many_forks": "end_request"}
    dialect = make_dialect(fork_at="prompt", trigger=None, limits={"max_forks": 0}, policies=policies)
    play = Play(dialect)
    play.step(root="dropped")
    assert play.done() == ["WillNotJoin root", "EndFamily length"]
    assert (play.answer, play.finish) == ("", "length")


def test_branches_of_a_request_end_its_answer(make_dialect):
    play = Play(options=branches("a=", "b="))
    play.step(root="dropped")
    assert play.done() == ["Park root", "Start t0", "Start t1"]
    play.step(t1="2\0", t0="1")
    assert play.answer == "a=1"
    play.step(t0="\0")
    assert play.done()[-1] == "EndFamily stop"
    assert (play.answer, play.finish) == ("a=1b=2\0", "stop")
    (forked,) = play.told(Forked)
    assert [(t.number, t.title) for t in forked.threads] == [("1", "title a="), ("2", "title b=")]


def test_a_closing_text_of_the_request_is_what_its_answer_goes_on_from(make_dialect):
    play = Play(options=branches("a=", "b=", closing="so "))
    play.step(root="dropped")
    play.step(t0="1\0", t1="2\0")
    assert play.done()[-1] == "Resume root a=1b=2so "
    assert play.answer == "a=1b=2so "
    play.step(root="3\0")
    assert (play.answer, play.finish) == ("a=1b=2so 3\0", "stop")


def test_a_prompt_whose_branches_may_not_start_is_answered_in_a_row():
    play = Play(options=branches("a=", "b="), limits=Limits(max_forks=0))
    play.step(root="dropped")
    assert play.done() == ["WillNotJoin root", "SampleAgain root"]
    assert [e.reason for e in play.told(Refused)] == ["too_many_forks"]


@pytest.mark.parametrize(("max_model_len", "is_refused"), [(6, False), (5, True)])
def test_branches_find_room_or_the_prompt_is_answered(max_model_len, is_refused):
    play = Play(options=branches("a=", "long"), max_model_len=max_model_len)  # Q, and long, and one to write
    play.step(root="dropped")
    assert [e.reason for e in play.told(Refused)] == (["no_room"] if is_refused else [])
    assert ("SampleAgain root" in play.done()) == is_refused


# ---- threads that wait for those that they depend on -------------------------------------------

THREAD = {"header": "<B><T>{n}:", "joined_header": "<T>{n}:", "end": "</T>", "between": ",", "close": "</T>"}
STAGES = {
    "trigger": "<G>",
    "outline": {"pattern": r"(?P<number>[0-9])\[(?P<depends>[^\]]*)\]"},
    "thread": THREAD,
    "tags": ["<B>", "<T>"],
}
STITCHED = {"kind": "stitch", "text": "<J>", "between_stages": ";", "close_block": "</B>"}
DIAMOND = "1[]2[]3[1]4[2,9]5[3,4]<G>"


@pytest.fixture(params=["stitch", "reprefill"])
def staged(request, make_dialect):
    """A request of a dialect whose outlines name what they depend on."""

    def make(request_fields=None, **fields) -> Play:
        join = STITCHED | {"kind": request.param}
        return Play(make_dialect(**STAGES | {"join": join} | fields), **request_fields or {})

    return make


def test_a_thread_starts_when_the_stage_of_what_it_depends_on_has_been_joined(staged):
    play = staged()
    play.step(root=DIAMOND)
    assert [d for d in play.done() if d.startswith("Start")] == ["Start t0", "Start t1"]
    play.step(t1="b</T>")
    play.step(t0="aa</T>")
    assert play.done()[-1] == "Resume root <B><T>1:aa</T>,<T>2:b</T>;"
    play.step(root="dropped")
    assert play.done()[:3] == ["Park root", "Start t2", "Start t3"]
    seen = f"Q{DIAMOND}<B><T>1:aa</T>,<T>2:b</T>;"
    assert [play.text(t) for t in play.machine.family.threads[2:4]] == [f"{seen}<T>3:", f"{seen}<T>4:"]
    play.step(t2="c</T>", t3="d</T>")
    play.step(root="dropped")
    play.step(t4="e</T>")
    assert play.done()[-1] == "Resume root <T>5:e</T><J>"
    play.step(root="f\0")
    joined = "<B><T>1:aa</T>,<T>2:b</T>;<T>3:c</T>,<T>4:d</T>;<T>5:e</T><J>f\0"
    assert (play.answer, play.finish) == (DIAMOND + joined, "stop")
    assert play.machine.family.num_forks == 1
    assert play.machine.family.widest == 2


def test_all_threads_are_announced_at_once_and_told_of_when_they_start(staged):
    play = staged()
    play.step(root=DIAMOND)
    (forked,) = play.told(Forked)
    assert [t.number for t in forked.threads] == list("12345")
    assert forked.num_later == 3
    assert [(e.reason, e.policy, e.num) for e in play.told(Tolerated)] == [("wrong_dependency", "drop", 1)]
    assert play.machine.counts(Progress).num_threads == 2
    play.step(t0="</T>", t1="</T>")
    play.step(root="")
    assert [started.threads for started in play.told(ThreadsStarted)] == [[2, 3]]
    assert play.machine.counts(Progress).num_threads == 4


def test_a_thread_may_fork_in_stages_of_its_own(staged):
    play = staged(max_depth=2)
    play.step(root="1[]2[1]<G>")
    play.step(t0="1[]2[1]3[]<G>")
    assert [(e.parent_index, e.num_later) for e in play.told(Forked)] == [(-1, 1), (0, 2)]
    play.step(t2="a</T>")
    play.step(t0="")
    play.step(t3="b</T>", t4="c</T>")
    play.step(t0="d</T>")
    play.step(root="")
    play.step(t1="e</T>")
    inner = "1[]2[1]3[]<G><B><T>1:a</T>;<T>2:b</T>,<T>3:c</T><J>"
    assert play.answer == f"1[]2[1]<G><B><T>1:{inner}d</T>;<T>2:e</T><J>"


def test_a_fork_beside_threads_that_wait_has_none_that_do(staged):
    play = staged(max_depth=2)
    play.step(root="1[]2[1]<G>")
    play.step(t0="1[]2[]<G>")
    assert [e.num_later for e in play.told(Forked)] == [1, 0]


def test_the_longest_thread_of_each_stage_is_on_the_critical_path(staged):
    play = staged()
    play.step(root=DIAMOND)
    play.step(t0="aaa</T>", t1="</T>")
    play.step(root="")
    play.step(t2="</T>", t3="dd</T>")
    play.step(root="")
    play.step(t4="e</T>")
    play.step(root="f")
    assert play.machine.family.root.num_critical == len(DIAMOND) - 2 + 4 + 3 + 2 + 1


@pytest.mark.parametrize("policy", ["sequential", "end_request"])
def test_a_dependency_on_no_earlier_thread_may_refuse_the_fork(staged, policy):
    play = staged(policies={"wrong_dependency": policy})
    play.step(root="1[2]2[]<G>")
    assert [(e.reason, e.policy) for e in play.told(Refused)] == [("wrong_dependency", policy)]
    assert play.finish == ("length" if policy == "end_request" else None)


@pytest.mark.parametrize(
    ("text", "num_wrong", "num_later"),
    [("1[1]2[]", 1, 0), ("1[2]2[1]", 1, 1), ("1[7]2[x]", 2, 0)],
    ids=["itself", "cycle", "unknown"],
)
def test_a_wrong_dependency_is_counted_and_waited_for_by_nobody(staged, text, num_wrong, num_later):
    play = staged()
    play.step(root=f"{text}<G>")
    (forked,) = play.told(Forked)
    assert ([e.num for e in play.told(Tolerated)], forked.num_later) == ([num_wrong], num_later)


def test_dependencies_may_be_left_unread(staged):
    outline = STAGES["outline"] | {"dependencies": "ignore"}
    play = staged(outline=outline)
    play.step(root=DIAMOND)
    assert [d for d in play.done() if d.startswith("Start")] == [f"Start t{n}" for n in range(5)]
    assert play.told(Tolerated) == []


def test_a_thread_that_waits_and_is_cancelled_never_starts_and_stands_nowhere(staged):
    play = staged()
    play.step(root=DIAMOND)
    for index in (2, 3):
        assert play.cancel(index) == "cancelling"
    play.step(t0="a")
    ends = [(e.index, e.reason) for e in play.told(ThreadEnded)]
    assert ends == [(2, ThreadEnd.NOT_STARTED), (3, ThreadEnd.NOT_STARTED)]
    play.step(t0="</T>", t1="</T>")
    play.step(root="")
    play.step(t4="e</T>")
    assert play.answer == f"{DIAMOND}<B><T>1:a</T>,<T>2:</T>;<T>5:e</T><J>"


def test_a_thread_that_is_cancelled_as_it_is_about_to_start_ends_behind_that(staged):
    play = staged()
    play.step(root="1[]2[1]<G>")
    play.step(t0="</T>")
    play.cancel(1)
    play.step()
    assert play.told(ThreadEnded)[1:] == []
    play.step(root="")
    assert [e.reason for e in play.told(ThreadEnded)] == [ThreadEnd.STOP, ThreadEnd.CLIENT_CANCELLED]
    assert play.answer == "1[]2[1]<G><B><T>1:</T>;<T>2:</T><J>"


def test_threads_that_wait_end_with_the_request(staged):
    play = staged(policies={"thread_eos": "end_request"})
    play.step(root="1[]2[1]<G>")
    play.step(t0="a\0")
    assert play.done()[-1] == "EndFamily stop t1"
    assert (play.answer, play.finish) == ("1[]2[1]<G><B><T>1:a</T></B>\0", "stop")
    assert [e.reason for e in play.told(ThreadEnded)] == [ThreadEnd.EOS, ThreadEnd.NOT_STARTED]


def test_a_budget_that_ends_between_two_stages_closes_the_block(staged):
    play = staged(request_fields={"max_tokens": len("1[]2[1]") + 1 + 2})
    play.step(root="1[]2[1]<G>")
    play.step(t0="a</T>")
    assert play.done()[-1] == "EndFamily length t1"
    assert (play.answer, play.finish) == ("1[]2[1]<G><B><T>1:a</T></B>", "length")


def test_a_stage_that_has_no_room_does_not_start(staged):
    """A thread needs its header, a token and what closes it."""
    play = staged(request_fields={"max_model_len": 24})
    play.step(root="1[]2[1]<G>")
    play.step(t0="a" * 5 + "</T>")
    assert (play.answer, play.finish) == ("1[]2[1]<G><B><T>1:aaaaa</T></B>", "length")


def test_a_text_between_stitched_threads_moves_no_position_of_what_follows(make_dialect):
    """Behind the longest thread, whether it stands last or not."""
    dialect = make_dialect(**STAGES | {"join": STITCHED})
    offsets = []
    for first, second in (("aaa</T>", "</T>"), ("</T>", "aaa</T>")):
        play = Play(dialect)
        play.step(root="1[]2[]<G>")
        play.step(t0=first, t1=second)
        offsets.append(play.root.offset)
    # the second header, the shorter thread and the text between have slots beside positions that others have
    assert offsets == [-(3 + 1 + 1)] * 2
