"""How a branch goes on when its threads have ended, or ends with them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import cache

from forkjoin_scheduler.dialects.policies import Policy
from forkjoin_scheduler.families.family import Branch
from forkjoin_scheduler.families.stitch import joined_offset, num_skipped
from forkjoin_scheduler.families.thread_end import ThreadEnd
from forkjoin_scheduler.families.vote import Vote
from forkjoin_scheduler.joins.joined import JoinPlan, body, written
from forkjoin_scheduler.machine import cutting, ending
from forkjoin_scheduler.machine.effects import Effects, EndJoined, How, Resume
from forkjoin_scheduler.machine.machine import Machine
from forkjoin_scheduler.machine.output_token import OutputToken, injected
from forkjoin_scheduler.publish.events import Limited, Tolerated, Voted


def join(machine: Machine, branch: Branch) -> Effects:
    """Let ``branch``, whose threads have ended, go on or end."""
    threads = branch.waits_for
    if machine.stop_reason is not None and any(t.end is ThreadEnd.REQUEST_STOP for t in threads):
        yield from _end_branch(machine, branch, ThreadEnd.REQUEST_STOP)
        return
    if machine.vote is not None:
        yield from _end_branch(machine, branch, _show_winner(machine, branch, machine.vote))
        return
    dialect, transcript = machine.dialect, machine.transcripts[branch]
    plan, room = _plan(machine, branch, threads)
    goes_on, shows_threads = dialect.join.goes_on, dialect.join.shows_threads
    is_too_long = goes_on and room <= _num_of_next_stage(machine, branch)
    is_spent = goes_on and plan.end is None and not machine.family.remaining
    if not shows_threads or not (is_too_long or is_spent):
        transcript.push(injected(dialect.join.shown_ids(plan)))
    if is_too_long:
        reason = "prompt_too_long" if dialect.join.asks_again else "joined_too_long"
        yield from cutting.end_at_limit(machine, reason, Policy.END_REQUEST)
    elif is_spent:
        yield from cutting.end_at_budget(machine)
    elif goes_on and plan.end is None and _was_last_turn(machine, branch):
        machine.emit(Limited(reason="too_many_turns", policy=dialect.policies.too_many_turns))
        yield from ending.end_family(machine, How.CAPPED)
    elif plan.end is not None or not goes_on:
        end = plan.end or _end_of_all(branch)
        if end is not ThreadEnd.LENGTH and branch is machine.family.root:
            # vLLM keeps the last token of a stopped request out of its text.
            transcript.push([OutputToken(_eos_of(machine, branch))])
        _cut_off(machine, branch, plan)
        branch.token_ids += plan.token_ids
        yield from _end_branch(machine, branch, end)
    else:
        yield from _go_on(machine, branch, plan, room)


def _was_last_turn(machine: Machine, branch: Branch) -> bool:
    """Whether the answer ends with this join. A join between stages is none of its own."""
    return machine.dialect.summary is None and not branch.planned and machine.has_no_turn(branch)


def _plan(machine: Machine, branch: Branch, threads: Sequence[Branch]) -> tuple[JoinPlan, int]:
    """How ``branch`` goes on after ``threads``, and the room that its context has then."""
    plan, room = _plan_of(machine, branch, threads)
    dialect = machine.dialect
    if room > 0 or dialect.policies.prompt_too_long is not Policy.DROP:
        return plan, room
    order = dialect.join.left_out_first(dialect, threads, machine.world.tokenizer)
    if not order:
        return plan, room

    @cache  # the search has made the plan that it ends with
    def without(num: int) -> tuple[JoinPlan, int]:
        return _plan_of(machine, branch, [t for t in threads if t not in order[:num]])

    # The fewest that leave room; a plan is a long text to encode, so not one after the other.
    num = bisect_left(range(1, len(order)), True, key=lambda n: without(n)[1] > 0) + 1
    machine.emit(Tolerated(parent_index=branch.index, reason="prompt_too_long", policy=Policy.DROP, num=num))
    return without(num)


def _plan_of(machine: Machine, branch: Branch, threads: Sequence[Branch]) -> tuple[JoinPlan, int]:
    dialect, tokenizer = machine.dialect, machine.world.tokenizer
    context = machine.prompt or machine.world.context(branch)
    closing = (
        tokenizer.encode(dialect.join.between_stages) if branch.planned else machine.terms.options.closing
    )
    plan = dialect.join.plan(dialect, threads, context, tokenizer, closing)
    num_tokens = (len(context) if plan.keep is None else plan.keep) + len(plan.token_ids)
    room = _room_behind(machine, branch, num_tokens) if dialect.join.goes_on else 0
    return plan, room


def outgrows(machine: Machine, branch: Branch) -> bool:
    """Whether the threads of a parked ``branch`` hold more already than its joined context may."""
    own = sum(len(t.token_ids) for t in branch.waits_for)
    return branch.waits_for[0].fork_len + own >= machine.world.max_model_len


def own_ids(machine: Machine, thread: Branch) -> list[int]:
    """The tokens of a thread after its parent's context, as they stand in a stitched one."""
    assert thread.plan is not None
    return [*thread.plan.header_ids, *body(machine.dialect, thread, machine.world.tokenizer)]


def stitched_end(machine: Machine, threads: Sequence[Branch]) -> tuple[int, int]:
    """Tokens of a context up to the end of the stitched ``threads``, and the offset of what follows."""
    lengths = [len(own_ids(machine, t)) for t in threads]
    num_left_out = sum(num_skipped(t, is_first=t is threads[0]) for t in threads)
    stitched_len = threads[0].fork_len + sum(lengths) - num_left_out
    dialect, tokenizer = machine.dialect, machine.world.tokenizer
    if dialect.thread.between:  # it stands at the place of what follows the last
        num = len(tokenizer.encode(dialect.thread.between))
        lengths = [*(length - num for length in lengths[:-1]), lengths[-1]]
    return stitched_len, joined_offset(threads, lengths, stitched_len, dialect.positions)


def offset_behind(machine: Machine, threads: Sequence[Branch]) -> int:
    """The offset of what follows a stitched join of ``threads``."""
    return stitched_end(machine, threads)[1]


def _room_behind(machine: Machine, branch: Branch, num_tokens: int) -> int:
    moves_kv = machine.dialect.join.moves_kv
    offset = offset_behind(machine, branch.waits_for) if moves_kv else 0
    return machine.room(branch, num_tokens, offset)


def _num_of_next_stage(machine: Machine, branch: Branch) -> int:
    """Tokens that the stage which follows in ``branch`` takes before its threads write; 0: none follows."""
    if not branch.planned:
        return 0
    dialect, plans = machine.dialect, [thread.plan for thread in branch.planned[0]]
    num_closing = dialect.join.num_closing_tokens(dialect, machine.world.tokenizer)
    return max(len(plan.header_ids) for plan in plans if plan) + dialect.positions.fork_gap + num_closing


def _end_of_all(branch: Branch) -> ThreadEnd:
    """How a branch ends that ends with its threads."""
    ends = [t.end for t in branch.waits_for]
    return ThreadEnd.STOP if ThreadEnd.STOP in ends else ThreadEnd.LENGTH


def _show_winner(machine: Machine, branch: Branch, vote: Vote) -> ThreadEnd:
    """Let the thread with the most votes out as the answer; returns how that ends."""
    winner, result = vote.winner(branch.waits_for)
    for thread in branch.waits_for:
        transcript = machine.transcripts.pop(thread)
        if thread is winner:
            machine.transcripts[branch].push(transcript.release())
    machine.emit(Voted(index=winner.index, result=result))
    if winner.end is not ThreadEnd.STOP:
        return ThreadEnd.LENGTH
    # vLLM keeps the last token of a stopped request out of its text.
    machine.transcripts[branch].push([OutputToken(winner.token_ids[-1])])
    return ThreadEnd.STOP


def _go_on(machine: Machine, branch: Branch, plan: JoinPlan, room: int) -> Effects:
    """Let ``branch`` go on after its threads, with ``room`` tokens left in its context."""
    _cut_off(machine, branch, plan)
    machine.family.join(branch, list(plan.token_ids))
    if machine.dialect.join.moves_kv:
        branch.stitched_len, branch.offset = stitched_end(machine, branch.waits_for)
    if machine.dialect.summary is not None and not branch.planned:
        machine.summarising.add(branch)
    forks = machine.dialect.join.asks_again and branch.num_joined <= len(machine.dialect.join.further_widths)
    yield Resume(branch, plan, room, forks=forks or bool(branch.planned))


def _cut_off(machine: Machine, branch: Branch, plan: JoinPlan) -> None:
    """Forget what of the context of ``branch`` the ``plan`` says again, or otherwise."""
    if plan.keep is not None:
        branch.take_back(len(machine.world.context(branch)) - plan.keep, ())
        branch.cut_context(plan.keep)


def _eos_of(machine: Machine, branch: Branch) -> int:
    """The end-of-sequence token that the first thread to write one wrote."""
    wrote = (t.token_ids[-1] for t in branch.waits_for if not t.forks and written(t) != t.token_ids)
    return next(wrote, min(machine.world.eos_ids, default=0))


def _end_branch(machine: Machine, branch: Branch, end: ThreadEnd) -> Effects:
    """A parked ``branch`` ends with its threads: the request, or a thread that had forked."""
    how = How.CAPPED if end is ThreadEnd.LENGTH else How.STOPPED
    if branch is machine.family.root:
        yield from ending.end_family(machine, how)
        return
    yield EndJoined(branch, how)
    yield from ending.end_thread(machine, branch, end)
