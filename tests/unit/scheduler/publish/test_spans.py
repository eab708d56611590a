from __future__ import annotations

import doctest

from forkjoin_scheduler.dialects.policies import Policy
from forkjoin_scheduler.families.thread_end import ThreadEnd
from forkjoin_scheduler.publish import spans
from forkjoin_scheduler.publish.events import (
    ROOT,
    Admission,
    FamilyEnded,
    Forked,
    ForkLatency,
    Joined,
    Limited,
    NewThread,
    Refused,
    ThreadEnded,
    ThreadsStarted,
    Tokens,
    Voted,
)
from forkjoin_scheduler.publish.spans import FamilySpans


def _threads(*indices):
    return [NewThread(index=i, number=str(i + 1), title=f"t{i}" if i else "") for i in indices]


def _forked(at, *indices, parent=ROOT):
    return Forked(parent_index=parent, shared_tokens=7, threads=_threads(*indices)), at


def _ended(at, index, reason=ThreadEnd.STOP, policy=None):
    return ThreadEnded(index=index, reason=reason, num_tokens=10 + index, policy=policy), at


def _heard(*told):
    family = FamilySpans()
    for event, at_ns in told:
        family.hear(event, at_ns)
    return family


def test_a_thread_spans_from_its_fork_to_its_end():
    family = _heard(_forked(100, 0, 1), _ended(150, 1, ThreadEnd.LENGTH, Policy.CLOSE_THREAD), _ended(200, 0))
    assert [(t.start_ns, t.end_ns) for t in family.threads.values()] == [(100, 200), (100, 150)]
    assert family.threads[1].attributes == {
        "forkjoin.thread.index": 1,
        "forkjoin.thread.title": "t1",
        "forkjoin.thread.parent": ROOT,
        "forkjoin.thread.num_tokens": 11,
        "forkjoin.thread.end_reason": "length",
        "forkjoin.thread.policy": "close_thread",
    }


def test_a_thread_without_a_title_goes_by_its_number():
    assert _heard(_forked(1, 0)).threads[0].attributes["forkjoin.thread.title"] == "1"


def test_what_happens_in_a_branch_is_noted_in_its_own_span():
    family = _heard(
        _forked(1, 0, 1),
        _forked(2, 2, 3, parent=0),
        (Joined(parent_index=0, prefilled_tokens=4), 3),
        (Refused(parent_index=1, reason="nested_fork", policy="sequential"), 4),
        (Joined(parent_index=ROOT, prefilled_tokens=4), 5),
        (Limited(reason="total_tokens", policy=Policy.END_REQUEST), 6),
    )
    fork = {"forkjoin.fork.width": 2, "forkjoin.fork.shared_tokens": 7}
    join = {"forkjoin.join.prefilled_tokens": 4}
    limited = {"forkjoin.limited.reason": "total_tokens", "forkjoin.limited.policy": "end_request"}
    refused = {"forkjoin.refused.reason": "nested_fork", "forkjoin.refused.policy": "sequential"}
    assert family.root.events == [
        ("forkjoin.fork", 1, fork),
        ("forkjoin.join", 5, join),
        ("forkjoin.limited", 6, limited),
    ]
    assert family.threads[0].events == [("forkjoin.fork", 2, fork), ("forkjoin.join", 3, join)]
    assert family.threads[1].events == [("forkjoin.refused", 4, refused)]
    assert [t.parent_index for t in family.threads.values()] == [ROOT, ROOT, 0, 0]


def test_a_vote_and_the_counts_are_the_requests():
    counts = {"num_threads": 2, "critical_path_tokens": 5, "total_tokens": 9}
    family = _heard(
        (Voted(index=1, result="42"), 1),
        (Voted(index=0, result=None), 2),
        (FamilyEnded(family="r", surplus_tokens=1, **counts), 3),
    )
    assert [attributes for _, _, attributes in family.root.events] == [
        {"forkjoin.vote.thread": 1, "forkjoin.vote.result": "42"},
        {"forkjoin.vote.thread": 0},
    ]
    assert family.root.attributes == {f"forkjoin.{name}": count for name, count in counts.items()}


def test_what_is_of_no_branch_changes_nothing():
    other = [Tokens(index=0, token_ids=[]), ForkLatency(seconds=1), Admission(peak_ratios=[1.0])]
    assert _heard(*((event, 1) for event in other)) == FamilySpans()


def test_the_worked_example_is_right():
    done = doctest.testmod(spans)
    assert done.failed == 0 < done.attempted


def test_a_thread_of_a_later_wave_spans_from_its_start_and_one_that_never_started_no_time():
    family = _heard(
        _forked(100, 0, 1, 2),
        (ThreadsStarted(parent_index=ROOT, threads=[1], shared_tokens=7), 120),
        _ended(150, 0),
        _ended(160, 1, ThreadEnd.CUT),
        _ended(160, 2, ThreadEnd.NOT_STARTED),
    )
    assert [(t.start_ns, t.end_ns) for t in family.threads.values()] == [(100, 150), (120, 160), (160, 160)]
    assert ("forkjoin.start", 120, {"forkjoin.start.num_threads": 1}) in family.root.events
