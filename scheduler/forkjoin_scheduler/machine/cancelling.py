"""A client cancels one thread of its running answer: whether it can, and what ends then.

The thread ends as at a limit, at the end of a step: what it wrote is closed and joined. One that has forked
ends from its leaves: first its threads, then, in a later step, itself, with what they wrote.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from forkjoin_scheduler.families.family import Branch, BranchState, Family
from forkjoin_scheduler.families.thread_end import ThreadEnd
from forkjoin_scheduler.families.vote import Vote
from forkjoin_scheduler.machine import ending
from forkjoin_scheduler.machine.effects import Effects
from forkjoin_scheduler.machine.machine import Machine

#: What a client hears that wants to cancel a thread, unless it is how the thread has ended.
Heard = Literal["cancelling", "unknown"]
CANCELLING: Heard = "cancelling"
#: Nothing that runs has such a thread, or not for this client.
UNKNOWN: Heard = "unknown"


def ask(machine: Machine, index: int) -> str:
    """Let the thread of this ``index`` end at the end of the next step; returns what its client hears."""
    thread = thread_at(machine.family, index)
    if thread is None:
        return UNKNOWN
    if thread.end is not None:
        return thread.end.value
    if thread not in machine.cancelled:
        machine.cancelled.append(thread)
    return CANCELLING


def advance(machine: Machine) -> Effects:
    """End what of the cancelled threads decodes.

    One whose KV is recomputed ends when that is done: its siblings that have ended get theirs before
    it, and their parent would join without.
    """
    for thread in to_end(machine.cancelled):
        if machine.vote is not None:
            yield from _end_without_vote(machine, thread, machine.vote)
        elif thread in machine.later:
            yield from _leave_out(machine, thread)
        elif not machine.world.is_standing(thread):
            yield from ending.stop(machine, thread, ThreadEnd.CLIENT_CANCELLED)
    machine.cancelled = [thread for thread in machine.cancelled if thread.end is None]


def _leave_out(machine: Machine, thread: Branch) -> Effects:
    """A thread that waits for others is not started; one that is about to start ends after that."""
    assert thread.parent is not None
    if thread.parent.state is BranchState.PARKED:
        machine.later = [later for later in machine.later if later is not thread]
        machine.family.leave_out(thread)
        yield from ending.cancel(machine, thread, ThreadEnd.NOT_STARTED)


def thread_at(family: Family, index: int) -> Branch | None:
    """The thread of ``family`` that has this ``index``, None if none has."""
    return family.threads[index] if 0 <= index < len(family.threads) else None


def to_end(cancelled: Sequence[Branch]) -> list[Branch]:
    """The branches that end now: of the ``cancelled`` threads, and of all beneath them, those that decode."""
    all_beneath = dict.fromkeys(branch for thread in cancelled for branch in thread.subtree())
    return [b for b in all_beneath if b.state is BranchState.DECODING and b.end is None]


def _end_without_vote(machine: Machine, thread: Branch, vote: Vote) -> Effects:
    """A thread that votes is an answer of its own: one that is broken off is none, and has no vote."""
    # one that a later wave would have started is not counted as having run
    has_started = thread not in machine.later
    machine.later = [later for later in machine.later if later is not thread]
    end = ThreadEnd.CLIENT_CANCELLED if has_started else ThreadEnd.NOT_STARTED
    yield from ending.cancel(machine, thread, end)
    vote.lose_one()
