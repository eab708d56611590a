"""What answers say of their threads is what the schema says that they say."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from forkjoin_scheduler.families.thread_end import ThreadEnd
from forkjoin_scheduler.publish.events import (
    Continued,
    FamilyEnded,
    Forked,
    Kept,
    NewThread,
    ThreadEnded,
    Tokens,
    Voted,
    Waiting,
)
from forkjoin_server.answer.answer_fields import FinishReason, ForkJoinThread, ForkJoinUsage
from forkjoin_server.answer.threads import _CUT_SHORT, ThreadLog, finish_reason

FORKED = Forked(
    parent_index=-1,
    threads=[NewThread(index=i, number=str(i + 1), title="") for i in range(2)],
    shared_tokens=0,
)


def _told(*, has_token_ids: bool = False) -> tuple[ThreadLog, list[dict]]:
    """A log of two threads, of which one ends by itself, and the entries of its stream."""
    log = ThreadLog("key", has_token_ids=has_token_ids, num_given=1)
    events = [
        FORKED,
        Waiting(index=0, waits_for="turn"),
        Waiting(index=0, waits_for=None),
        Tokens(index=0, text="a", token_ids=[7]),
        ThreadEnded(index=0, reason=ThreadEnd.STOP, num_tokens=1),
        Voted(index=0, result=None),
        Continued(state="pressure"),
        Kept(num_tokens=32, seconds=60.0, refusal=None),
        FamilyEnded(family="key", num_threads=2, critical_path_tokens=1, total_tokens=1, surplus_tokens=0),
    ]  # fmt: skip
    entries = [entry for event in events for entry in log.delta(event)]
    return log, [*entries, *log.cut_open()]


@pytest.mark.parametrize("has_token_ids", [False, True])
def test_every_entry_of_a_thread_has_the_published_fields(has_token_ids):
    log, entries = _told(has_token_ids=has_token_ids)
    for entry in (*entries, *log.threads):
        ForkJoinThread.model_validate(entry)
    published = set(ForkJoinThread.model_fields) - (set() if has_token_ids else {"token_ids"})
    assert set(log.threads[0]) == published - {"waits_for"}, "a whole answer waits for nothing"
    assert {name for entry in entries for name in entry} == published


def test_the_usage_of_a_vote_has_the_published_fields():
    log, _ = _told()
    usage = log.correct_usage({"completion_tokens": 1, "total_tokens": 2})["forkjoin"]
    ForkJoinUsage.model_validate(usage)
    assert set(usage) == set(ForkJoinUsage.model_fields)


def test_a_field_that_nobody_published_is_noticed():
    with pytest.raises(ValidationError, match="colour"):
        ForkJoinThread.model_validate({"index": 0, "colour": "red"})


def test_every_reason_that_clients_are_told_is_published():
    told = {finish_reason(reason) for reason in (*_CUT_SHORT, "stop", "eos")}
    assert told == set(FinishReason.__args__)
