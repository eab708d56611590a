"""Forks behind the prompt, played by hand: of a dialect, and of a request that names its branches."""

from __future__ import annotations

import pytest

from forkjoin_scheduler.dialects.limits import Limits
from forkjoin_scheduler.publish.events import Forked, Refused
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
