from __future__ import annotations

import pytest

from forkjoin_scheduler.dialects.bound import BoundDialect
from forkjoin_scheduler.dialects.dialect import ForkAt
from forkjoin_scheduler.dialects.limits import Limits
from forkjoin_scheduler.dialects.policies import Policy
from forkjoin_scheduler.families.family import Branch, BranchState
from forkjoin_scheduler.families.thread_end import ThreadEnd
from forkjoin_scheduler.families.vote import Vote
from forkjoin_scheduler.joins.joined import plan_join
from forkjoin_scheduler.request.compiled import compile_options
from forkjoin_scheduler.request.explicit import explicit_dialect, explicit_plan
from forkjoin_scheduler.request.options import parse_options

BRANCHES = {"branches": [{"title": "a"}, {"text": "b:"}, {"title": "c", "text": "d:"}]}
BEST = {"best_of": 3, "vote": r"=(?P<result>\d)"}


def _of(value: dict):
    options = compile_options(parse_options(value), lambda text: list(text.encode()))
    return options, explicit_dialect(options, Limits(max_forks=5))


def _ended(plan, texts: list[bytes], end: ThreadEnd) -> list[Branch]:
    return [
        Branch(f"r#{i}", plan=p, sibling_index=i, state=BranchState.ENDED, end=end, token_ids=list(text))
        for i, (p, text) in enumerate(zip(plan.threads, texts, strict=True))
    ]


@pytest.mark.parametrize("value", [BRANCHES, BRANCHES | {"closing": "so"}, BEST])
def test_what_a_request_asks_for_forks_behind_its_prompt_within_its_limits(value):
    options, dialect = _of(value)
    assert (dialect.fork_at, dialect.width, dialect.limits) == (ForkAt.PROMPT, 3, Limits(max_forks=5))
    assert (dialect.policies.thread_eos, dialect.policies.thread_length) == (Policy.CLOSE_THREAD,) * 2
    assert options.forks_at_prompt


def test_each_branch_begins_with_its_text_or_else_its_title_in_a_line():
    options, _ = _of(BRANCHES)
    plan = explicit_plan(options)
    assert [(t.number, t.title, bytes(t.header_ids), t.end) for t in plan.threads] == [
        ("1", "a", b"a\n", None),
        ("2", "", b"b:", None),
        ("3", "c", b"d:", None),
    ]
    assert all(t.header_ids == t.joined_header_ids for t in plan.threads)
    assert plan.num_duplicates == 0


def test_branches_alike_are_two_threads():
    options, _ = _of({"branches": [{"title": "a"}, {"title": "a"}]})
    assert [t.number for t in explicit_plan(options).threads] == ["1", "2"]


def test_the_best_of_threads_begin_with_nothing():
    options, dialect = _of(BEST)
    plan = explicit_plan(options)
    assert [(t.number, t.header_ids, t.joined_header_ids, t.end) for t in plan.threads] == [
        (str(n), (), (), None) for n in (1, 2, 3)
    ]
    assert (dialect.join.kind, dialect.join.waits, dialect.join.goes_on) == ("vote", True, False)


def test_threads_of_a_vote_take_the_openings_that_there_are_in_turn(byte_tokenizer):
    options, dialect = _of({"branches": [{"text": "a:"}, {"title": "b"}]} | BEST | {"best_of": 5})
    plan = explicit_plan(options)
    assert [(t.number, t.title, bytes(t.header_ids)) for t in plan.threads] == [
        ("1", "", b"a:"), ("2", "b", b"b\n"), ("3", "", b"a:"), ("4", "b", b"b\n"), ("5", "", b"a:")
    ]  # fmt: skip
    assert (dialect.join.kind, dialect.width, dialect.num_answers(dialect.limits)) == ("vote", 5, 5)


def test_the_best_of_is_the_first_with_the_vote_of_most(byte_tokenizer):
    options, dialect = _of(BEST)
    plan = explicit_plan(options)
    threads = _ended(plan, [b"=1\0", b"=2\0", b"so =2\0"], ThreadEnd.STOP)
    vote = Vote(dialect.join.ballot, byte_tokenizer([]), len(threads))
    for thread in threads:
        vote.read(thread)
    assert vote.winner(threads) == (threads[1], "2")


def test_without_a_closing_the_answer_ends_with_its_branches():
    _, dialect = _of(BRANCHES)
    assert (dialect.join.kind, dialect.join.goes_on, dialect.join.text) == ("finish", False, "")


@pytest.mark.parametrize("end", [ThreadEnd.STOP, ThreadEnd.LENGTH])
def test_with_a_closing_the_model_goes_on_behind_all_branches(byte_tokenizer, end):
    options, dialect = _of(BRANCHES | {"closing": "so"})
    plan = explicit_plan(options)
    eos = b"\0" if end is ThreadEnd.STOP else b""
    threads = _ended(plan, [b"1" + eos, b"2" + eos, eos], end)
    joined = plan_join(dialect, threads, byte_tokenizer([]), options.closing)
    assert bytes(joined.token_ids) == b"a\n1b:2d:so"
    assert (joined.end, dialect.join.kind, dialect.join.goes_on) == (None, "reprefill", True)


@pytest.mark.parametrize("text", ["{n}", "{user}", "{x}", '{"a": 1}', "{{n}}", "{"])
def test_the_words_of_a_request_are_no_templates(byte_tokenizer, text):
    options, dialect = _of({"branches": [{"title": text}, {"text": text}], "closing": text})
    plan = explicit_plan(options)
    threads = _ended(plan, [b"\0", b"\0"], ThreadEnd.STOP)
    joined = plan_join(dialect, threads, byte_tokenizer([]), options.closing)
    assert bytes(joined.token_ids).decode() == f"{text}\n{text}{text}"


def test_a_request_that_forks_behind_its_prompt_does_not_fork_by_what_it_writes(byte_tokenizer):
    _, dialect = _of(BEST)
    bound = BoundDialect(dialect, byte_tokenizer([]), None)
    assert not bound.triggers([1])
    assert not bound.ends_turn_with_fork([1])
    assert bound.asked_for([1]) is None
