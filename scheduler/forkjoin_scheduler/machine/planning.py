"""What a branch's text calls for, decided while its tokens are booked and done at the end of the step."""

from __future__ import annotations

from collections.abc import Sequence

from forkjoin_scheduler.dialects.policies import Policy
from forkjoin_scheduler.families.family import Branch, BranchState
from forkjoin_scheduler.families.fork import ForkPlan, Refusal, has_room, plan_fork
from forkjoin_scheduler.joins.joined import cut_last
from forkjoin_scheduler.machine.effects import Swap
from forkjoin_scheduler.machine.forking import Fork
from forkjoin_scheduler.machine.machine import Machine
from forkjoin_scheduler.request.explicit import explicit_plan


def plan(
    machine: Machine, branch: Branch, context: list[int], since: int, planned: Sequence[Fork] = ()
) -> ForkPlan | Refusal:
    """What the call at the end of ``context`` does; the request may itself say into what it forks.

    ``since``: tokens of the context that were there before the branch wrote, or when it forked last.
    ``planned``: its forks that were planned in this step and not made yet.
    """
    dialect, limits, world = machine.dialect, machine.family.limits, machine.world
    if machine.terms.options.forks_at_prompt:
        asked_for = explicit_plan(machine.terms.options)
        if limits.max_forks == 0:
            return Refusal("too_many_forks", dialect.policies.too_many_forks)
        if not has_room(asked_for.threads, len(context), world.max_model_len):
            return Refusal("no_room", dialect.policies.no_room)
        return asked_for
    offset = dialect.join.thread_offset(branch.offset, dialect.positions)
    found = plan_fork(
        dialect,
        limits,
        context,
        world.tokenizer,
        since=since,
        num_forks=machine.family.num_forks + machine.num_planned,
        depth=branch.depth,
        max_model_len=world.max_model_len - max(offset, 0),
    )
    if isinstance(found, ForkPlan) and any(
        is_numbered(machine, branch, t.number, planned) for t in found.threads
    ):
        return Refusal("duplicate_outline", Policy.SEQUENTIAL)
    return found


def is_numbered(machine: Machine, branch: Branch, number: str, planned: Sequence[Fork] = ()) -> bool:
    """Whether ``branch`` knows a thread by ``number``, or will when what is ``planned`` has been done."""
    return machine.dialect.join.asks_by_number and can_ask(machine, branch, number, planned)


def can_ask(machine: Machine, branch: Branch, number: str, planned: Sequence[Fork] = ()) -> bool:
    """Whether ``branch`` has threads to ask for by ``number``, or will when the ``planned`` have started."""
    join = machine.dialect.join
    threads = (thread for fork in planned for thread in fork.plan.threads)
    return bool(join.asked_for(branch, number, machine.numbered)) or join.is_planned(number, threads)


def swap(machine: Machine, branch: Branch, text: str) -> Swap | None:
    """What takes the place of ``text``, which ``branch`` has just written; None if there is no room."""
    tokenizer = machine.world.tokenizer
    keep, before = cut_last(text, machine.world.context(branch), tokenizer)
    token_ids = (*before, *tokenizer.encode(machine.dialect.swaps[text]))
    has_room = machine.room(branch, keep + len(token_ids)) > 0
    return Swap(branch, keep, token_ids) if has_room and branch.state is BranchState.DECODING else None
