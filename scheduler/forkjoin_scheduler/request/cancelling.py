"""A client cancels one thread of its running answer: whether it can, and what ends then.

The thread ends as at a limit: what it wrote is closed and joined. One that has forked ends from its
leaves: first its threads, then, in a later step, itself, with what they wrote.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from forkjoin_scheduler.machine.family import Branch, BranchState, Family
from forkjoin_scheduler.machine.thread_end import ThreadEnd

#: What a client hears that wants to cancel a thread, unless it is how the thread has ended.
Heard = Literal["cancelling", "unknown"]
CANCELLING: Heard = "cancelling"
#: Nothing that runs has such a thread, or not for this client.
UNKNOWN: Heard = "unknown"


def thread_at(family: Family, index: int) -> Branch | None:
    """The thread of ``family`` that has this ``index``, None if none has."""
    return family.threads[index] if 0 <= index < len(family.threads) else None


def ending(cancelled: Sequence[Branch]) -> list[Branch]:
    """The branches that end now: of the ``cancelled`` threads, and of all beneath them, those that decode."""
    all_beneath = dict.fromkeys(branch for thread in cancelled for branch in thread.subtree())
    return [b for b in all_beneath if b.state is BranchState.DECODING and b.end is None]


def end_without_vote(*, has_started: bool) -> ThreadEnd:
    """How a thread of a vote ends. One that a later wave would have started is not counted as having run."""
    return ThreadEnd.CLIENT_CANCELLED if has_started else ThreadEnd.NOT_STARTED
