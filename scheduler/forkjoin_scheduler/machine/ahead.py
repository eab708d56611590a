"""The progressive join, decided: threads that have ended are prefilled while slower ones still decode.

The joined context of a re-prefill join is a prefix for each thread that has ended, in order. So these can be
prefilled one after another before the last one ends, riding in the steps of those that decode, a few tokens
a step; at the join little is left. The same tokens, the same result.

It begins when few threads are left. Prefilled earlier, the same tokens would be in the way of all that
decodes until then, and hold KV blocks, and the join would come no sooner.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from forkjoin_scheduler.dialects.policies import Policy
from forkjoin_scheduler.families.family import Branch, BranchState
from forkjoin_scheduler.families.thread_end import ThreadEnd
from forkjoin_scheduler.joins.joined import end_policy
from forkjoin_scheduler.machine.machine import Machine

#: Of the threads that a branch waits for, one in so many are few; one always is.
FEW = 8


def may_prefill(machine: Machine, branch: Branch) -> bool:
    """Whether threads of ``branch`` have ended that a join soon to come will have to prefill."""
    waits = branch.state is BranchState.PARKED and machine.dialect.join.prefills_ahead
    return waits and _few_are_left(branch.waits_for) and num_ended(machine, branch) > 1


def _few_are_left(threads: Sequence[Branch]) -> bool:
    return sum(thread.is_live for thread in threads) <= max(len(threads) // FEW, 1)


def num_ended(machine: Machine, branch: Branch) -> int:
    """How many of the threads that ``branch`` waits for, from the first, have ended and may be joined."""
    ended = 0
    for thread in branch.waits_for:
        if thread.is_live or thread.end in (ThreadEnd.REQUEST_STOP, ThreadEnd.CANCELLED):
            break
        if end_policy(machine.dialect, thread.end) is Policy.END_REQUEST:
            break
        ended += 1
    return ended


def next_end(num_computed: int, ends: Iterable[int], room: int) -> int:
    """Up to which token of the joined context the next slice computes: one thread's tokens at most.

    ``num_computed``: tokens of it that have KV. ``ends``: where in it the threads that have ended end, in
    order. ``room``: tokens that may be computed ahead. Where there is nothing to do it is ``num_computed``.
    """
    end = next((end for end in ends if end > num_computed), num_computed)
    return min(end, num_computed + max(room, 0))
