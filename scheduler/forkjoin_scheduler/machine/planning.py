"""What a branch's text calls for, decided while its tokens are booked and done at the end of the step."""

from __future__ import annotations

from collections.abc import Sequence

from forkjoin_scheduler.dialects.policies import Policy
from forkjoin_scheduler.families.family import Branch, BranchState
from forkjoin_scheduler.families.fork import ForkPlan, Refusal, has_room, plan_fork
from forkjoin_scheduler.families.stitch import num_inherited
from forkjoin_scheduler.joins.joined import cut_last
from forkjoin_scheduler.machine import asking
from forkjoin_scheduler.machine.effects import Swap
from forkjoin_scheduler.machine.forking import Fork
from forkjoin_scheduler.machine.machine import Machine
from forkjoin_scheduler.request.explicit import explicit_plan


def plan(
    machine: Machine,
    branch: Branch,
    context: list[int],
    since: int,
    planned: Sequence[Fork] = (),
    *,
    had_forked: bool = False,
) -> ForkPlan | Refusal:
    """What the call at the end of ``context`` does; the request may itself say into what it forks.

    ``since``: tokens of the context that were there before the branch wrote, or when it forked last.
    ``planned``: its forks that were planned in this step and not made yet. ``had_forked``: whether it forked
    there in an earlier answer, which may have had more tokens left.
    """
    dialect, limits, world = machine.dialect, machine.family.limits, machine.world
    if branch in machine.summarising:
        return Refusal("nested_fork", dialect.policies.nested_fork)
    if machine.terms.options.forks_at_prompt:
        if branch is not machine.family.root:
            return Refusal("nested_fork", dialect.policies.nested_fork)
        asked_for = explicit_plan(machine.terms.options)
        if limits.max_forks == 0 or branch.forks:
            return Refusal("too_many_forks", dialect.policies.too_many_forks)
        if not has_room(asked_for.threads, len(context), world.max_model_len):
            return Refusal("no_room", dialect.policies.no_room)
        return asked_for
    offset = dialect.join.thread_offset(branch.offset, dialect.positions)
    left = machine.terms.max_tokens - num_positions(machine, branch, len(context))
    found = plan_fork(
        dialect,
        limits,
        context,
        world.tokenizer,
        since=since,
        begin=begin(machine, branch),
        num_forks=machine.family.num_forks + machine.num_planned,
        depth=branch.depth,
        max_model_len=world.max_model_len - max(offset, 0),
        num_left=None if had_forked else left,
    )
    if isinstance(found, ForkPlan) and any(
        asking.is_numbered(machine, branch, t.number, planned) for t in found.threads
    ):
        return Refusal("duplicate_outline", Policy.SEQUENTIAL)
    if isinstance(found, ForkPlan) and _opens_too_many(machine, found, planned):
        return Refusal("too_many_open", dialect.policies.too_many_open)
    if machine.has_no_turn(branch, num_more=1):
        return Refusal("too_many_turns", dialect.policies.too_many_turns)
    return found


def _opens_too_many(machine: Machine, plan: ForkPlan, planned: Sequence[Fork]) -> bool:
    """Whether with the threads of ``plan`` more would run than the dialect lets."""
    most, family = machine.dialect.max_open, machine.family
    num_begun = family.num_live - family.root.is_live - len(machine.later)
    num_beginning = sum(each.num_first for each in (*(fork.plan for fork in planned), plan))
    return most is not None and num_begun + num_beginning > most


def begin(machine: Machine, branch: Branch) -> int:
    """Tokens of the context of ``branch`` that were there before it wrote."""
    if branch.plan is None:
        return machine.terms.prompt_len
    return branch.fork_len + len(branch.plan.header_ids)


def num_positions(machine: Machine, branch: Branch, num_tokens: int) -> int:
    """Positions from the prompt's end to that of a context of ``branch`` with ``num_tokens`` tokens."""
    return num_tokens + branch.offset - machine.terms.prompt_len


def swap(machine: Machine, branch: Branch, text: str) -> Swap | None:
    """What takes the place of ``text``, which ``branch`` has just written.

    None if there is no room, or the context holds stitched threads: it can't be computed in a row.
    """
    if branch.stitched_len or num_inherited(branch):
        return None
    tokenizer = machine.world.tokenizer
    keep, before = cut_last(text, machine.world.context(branch), tokenizer)
    token_ids = (*before, *tokenizer.encode(machine.dialect.swaps[text]))
    return _swap_if_room(machine, Swap(branch, keep, token_ids))


def close_summary(machine: Machine, branch: Branch, num_tokens: int) -> Swap | None:
    """What takes the place of the end of sequence after ``num_tokens`` tokens; None: it ends ``branch``."""
    summary, policy = machine.dialect.summary, machine.dialect.policies.summary_eos
    if summary is None or branch not in machine.summarising or policy is Policy.END_REQUEST:
        return None
    token_ids = tuple(machine.world.tokenizer.encode(summary.end))
    return _swap_if_room(machine, Swap(branch, num_tokens, token_ids, ("summary_eos", policy.value)))


def _swap_if_room(machine: Machine, swap: Swap) -> Swap | None:
    has_room = machine.room(swap.branch, swap.keep + len(swap.token_ids)) > 0
    return swap if has_room and swap.branch.state is BranchState.DECODING else None
