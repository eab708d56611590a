"""What a thread votes for."""

from __future__ import annotations

import itertools
import re
import time

import pytest

from forkjoin_scheduler.dialects.patterns import check_linear, program_size
from forkjoin_scheduler.families.family import Branch, BranchState
from forkjoin_scheduler.families.fork import ThreadPlan
from forkjoin_scheduler.families.thread_end import ThreadEnd
from forkjoin_scheduler.families.vote import Vote, num_vote_chars
from forkjoin_scheduler.request.options import MAX_BRANCHES


@pytest.fixture
def tokenizer(byte_tokenizer):
    return byte_tokenizer([])


def _ended(tokenizer, *texts: str, end: ThreadEnd = ThreadEnd.STOP) -> list[Branch]:
    """Threads that ended after these texts, by an end of sequence."""
    own = [0] if end is ThreadEnd.STOP else []
    return [
        Branch(
            f"r#{i}",
            plan=ThreadPlan(str(i), "", (), ()),
            index=i,
            sibling_index=i,
            state=BranchState.ENDED,
            end=end,
            token_ids=[*tokenizer.encode(text), *own],
        )
        for i, text in enumerate(texts)
    ]


def _winner(pattern: str, tokenizer, threads: list[Branch]) -> tuple[Branch, str | None]:
    votes = Vote(pattern, tokenizer, len(threads))
    for thread in threads:
        votes.read(thread)
    return votes.winner(threads)


@pytest.mark.parametrize(
    ("pattern", "num_threads", "expected"),
    [("a", 1, 8192), (r"answer is (?P<result>[0-9]+)", 16, 3472), ("a", 256, 781), ("[ab]{80}c", 256, 128)],
    ids=["all", "ordinary", "many_threads", "slow_and_many"],
)
def test_a_vote_is_sought_in_less_text_the_more_that_takes(pattern, num_threads, expected):
    assert num_vote_chars(pattern, num_threads) == expected


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        ("b", "b" + "a" * 9000, None),
        ("b", "b" + "a" * 8000, "b"),
        ("[ab]+", "-" * 500 + "b" * 300, "b" * 300),
        ("a(?P<result>[0-9]*)", "a1 " * 3000 + "-" * 600, "1"),
        ("(?s).*", "x" * 900, ""),
    ],
    ids=["too_early", "early", "reaches_back", "of_many", "all"],
)
def test_a_vote_is_the_last_match_at_the_end_of_a_thread(tokenizer, pattern, text, expected):
    assert _winner(pattern, tokenizer, _ended(tokenizer, text))[1] == expected


def test_what_a_vote_is_does_not_depend_on_the_time(monkeypatch, tokenizer):
    """As after a collection of garbage, or beside processes that want the same core."""
    threads = _ended(tokenizer, "a", "b", "b")
    ticks = itertools.count(step=60)
    for clock in ("time", "monotonic", "perf_counter", "thread_time", "process_time"):
        monkeypatch.setattr(time, clock, lambda: float(next(ticks)))
    votes = Vote("[ab]", tokenizer, len(threads))
    assert [votes.peek(thread) for thread in threads * 100] == ["a", "b", "b"] * 100
    for thread in threads:
        votes.read(thread)
    assert votes.winner(threads) == (threads[1], "b")


def test_the_slowest_pattern_that_a_client_may_give_is_searched_for_in_milliseconds(tokenizer):
    """All the searches of a vote of as many threads as there may be, by the work that they are let do."""
    pattern = check_linear("[ab]{90}c")
    work = num_vote_chars(pattern, MAX_BRANCHES) * program_size(pattern) * MAX_BRANCHES
    assert work <= 4_000_000


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        (r"\d+$", "1 2", "2"),
        (r"\d+$", "1 2\n", "2"),
        (r"\d+$", "1 2\n\n", None),
        (r"(?m)\d+$", "1\n2 x", "1"),
    ],
    ids=["at_the_end", "before_a_line_break", "before_two", "of_a_line"],
)
def test_the_end_of_a_text_is_what_it_is_for_python(tokenizer, pattern, text, expected):
    last = re.findall(pattern, text)[-1:]
    assert last == ([] if expected is None else [expected])
    assert _winner(pattern, tokenizer, _ended(tokenizer, text))[1] == expected


@pytest.mark.parametrize(
    ("texts", "winner", "result"),
    [
        (["=1", "=2", "=2"], 1, "2"),
        (["=2", "=1"], 0, "2"),
        (["=1", "=2", "=2", "=1"], 0, "1"),
        (["?", "=3", "?"], 1, "3"),
        (["?", "?"], 0, None),
        (["=9 ", "= 1", "=1\t"], 1, "1"),
        (["=1 =2", "=2 =1", "=1"], 1, "1"),
        (["="], 0, ""),
    ],
    ids=["most", "tie", "tie_of_two", "no_match", "none_matches", "whitespace", "last_match", "empty"],
)
def test_the_first_thread_with_the_result_of_most_wins(tokenizer, texts, winner, result):
    threads = _ended(tokenizer, *texts)
    assert _winner(r"=(?P<result>[\s\d]*)", tokenizer, threads) == (threads[winner], result)


def test_the_order_in_which_votes_are_read_changes_nothing(tokenizer):
    threads = _ended(tokenizer, "=1", "=2", "=2", "=1")
    votes = Vote(r"=\d", tokenizer, 4)
    for thread in reversed(threads):
        votes.read(thread)
    assert votes.winner(threads) == (threads[0], "=1")


def test_a_vote_without_a_group_is_all_that_matched(tokenizer):
    threads = _ended(tokenizer, "=1", "=2")
    assert _winner(r"=\d", tokenizer, threads) == (threads[0], "=1")


def test_an_end_of_sequence_is_no_part_of_a_vote_but_text_cut_off_is(tokenizer):
    by_length = _ended(tokenizer, "=12", end=ThreadEnd.LENGTH)
    assert _winner(r"(?s)=.*", tokenizer, [*by_length, *_ended(tokenizer, "=1", "=1")])[1] == "=1"


def test_a_thread_that_has_not_ended_is_open_and_one_that_was_cut_is_in_no_tally(tokenizer):
    threads = _ended(tokenizer, "=1", "=2", "=3")
    threads[1].state, threads[1].end = BranchState.DECODING, None
    threads[2].end = ThreadEnd.CUT
    votes = Vote(r"=\d", tokenizer, 3)
    assert not votes.take_news()
    votes.read(threads[0])
    assert (votes.take_news(), votes.take_news()) == (True, False)
    tally = votes.tally(threads)
    assert (tally.results, tally.open) == ({0: "=1"}, {1})
