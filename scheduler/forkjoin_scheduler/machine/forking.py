"""What a branch has called for, done at the end of the step.

A trigger forks it, a text that it should not write is swapped.
"""

from __future__ import annotations

from dataclasses import dataclass

from forkjoin_scheduler.dialects.dialect import Context, ForkAt
from forkjoin_scheduler.dialects.patterns import find_all
from forkjoin_scheduler.dialects.policies import Policy
from forkjoin_scheduler.families.family import Branch, BranchState
from forkjoin_scheduler.families.fork import ForkPlan, Refusal
from forkjoin_scheduler.families.thread_end import ThreadEnd
from forkjoin_scheduler.families.transcript import Transcript
from forkjoin_scheduler.families.vote import Vote
from forkjoin_scheduler.machine import cutting, ending, voting
from forkjoin_scheduler.machine.effects import Effects, Park, SampleAgain, ShareTail, Swap, WillNotJoin
from forkjoin_scheduler.machine.machine import Machine
from forkjoin_scheduler.machine.output_token import injected
from forkjoin_scheduler.publish.events import Forked, NewThread, Refused, ThreadsStarted, Tolerated


@dataclass(frozen=True, eq=False)
class Fork:
    """A branch forks after the first ``num_tokens`` tokens of its context.

    ``since``: how many of them were there before it wrote, or when it forked last. ``num_in_run``: how many
    of those that it wrote in this step stand before the fork.
    """

    plan: ForkPlan
    num_tokens: int
    since: int
    num_in_run: int = 0


def fork(machine: Machine, branch: Branch, planned: Fork) -> Effects:
    """Start the threads that are ``planned``; ``branch`` stands still first, if its dialect wants that."""
    plan, dialect = planned.plan, machine.dialect
    machine.num_planned = max(machine.num_planned - 1, 0)
    machine.num_turns += 2 * (branch is machine.family.root)
    waits = dialect.join.waits
    if waits:
        yield Park(branch)
    fork_len = 0
    if dialect.thread.context is Context.PARENT:
        fork_len = planned.num_tokens - dialect.thread.without_trigger
    context = machine.world.context(branch)
    if dialect.join.asks_again and not machine.prompt:
        machine.prompt = list(context)
    threads = machine.family.fork(
        branch,
        plan,
        fork_len,
        waits=waits,
        offset=dialect.join.thread_offset(branch.offset, dialect.positions),
        num_behind=len(context) - planned.num_tokens,
    )
    _open_transcripts(machine, branch, threads)
    _expect_newlines(machine, branch, threads, context[planned.since : planned.num_tokens])
    later = [thread for stage in branch.planned for thread in stage]
    yield from _start(machine, branch, threads)
    machine.later += later
    num_later = len({*threads, *later}.intersection(machine.later))
    machine.emit(
        Forked(
            num_duplicates=plan.num_duplicates,
            num_later=num_later,
            shared_tokens=min(machine.world.num_computed(branch), fork_len),
            parent_index=branch.index,
            threads=[
                NewThread(index=t.index, number=p.number, title=p.title)
                for t, p in zip([*threads, *later], plan.threads, strict=True)
            ],
        )
    )
    for found in plan.tolerated:
        machine.emit(
            Tolerated(parent_index=branch.index, reason=found.reason, policy=found.policy, num=found.num)
        )


def next_stage(machine: Machine, branch: Branch) -> Effects:
    """``branch`` has been joined, and its KV is there: the threads start that depend on what was joined."""
    if branch.state is not BranchState.DECODING or not branch.planned:
        return
    yield Park(branch)
    dialect, context = machine.dialect, machine.world.context(branch)
    offset = dialect.join.thread_offset(branch.offset, dialect.positions)
    threads = machine.family.next_stage(branch, len(context), offset=offset)
    machine.later = [thread for thread in machine.later if thread not in threads]
    _open_transcripts(machine, branch, threads)
    yield from _start(machine, branch, threads)
    machine.emit(
        ThreadsStarted(
            parent_index=branch.index,
            threads=[t.index for t in threads],
            shared_tokens=min(machine.world.num_computed(branch), len(context)),
        )
    )


def refuse(machine: Machine, branch: Branch, refusal: Refusal) -> Effects:
    """``branch`` was refused what it called for: it goes on without, or it ends, or the request does."""
    if refusal.policy is Policy.CLOSE_THREAD and branch is machine.family.root:
        refusal = Refusal(refusal.reason, Policy.END_REQUEST)
    emit_refused(machine, branch, refusal)
    if branch is machine.family.root and machine.dialect.fork_at is ForkAt.PROMPT and not branch.forks:
        yield WillNotJoin(branch)
    if refusal.policy is Policy.END_REQUEST:
        # where the turns are over no block is left open
        is_open = refusal.reason != "too_many_turns"
        yield from cutting.end_closed(machine, refused=branch if is_open else None)
    elif refusal.policy is Policy.CLOSE_THREAD:
        yield from ending.stop(machine, branch, ThreadEnd.REFUSED)
    else:
        yield SampleAgain(branch)


def swap(machine: Machine, wanted: Swap) -> Effects:
    """Let a branch go on after what the dialect has in the place of what it wrote."""
    branch = wanted.branch
    if branch.state is not BranchState.DECODING:
        return
    reason, policy = wanted.why
    machine.emit(Refused(parent_index=branch.index, reason=reason, policy=policy))
    branch.take_back(len(machine.world.context(branch)) - wanted.keep, wanted.token_ids)
    branch.cut_context(wanted.keep)
    yield wanted
    machine.transcripts[branch].push(injected(wanted.token_ids))
    if reason == "summary_eos" and (refusal := machine.end_summary(branch)):
        yield from refuse(machine, branch, refusal)


def emit_refused(machine: Machine, branch: Branch, refusal: Refusal) -> None:
    """Emit that ``branch`` was refused what it called for, and what it does then."""
    policy = refusal.policy.value
    machine.num_turns += branch is machine.family.root and branch not in machine.summarising
    machine.emit(Refused(parent_index=branch.index, reason=refusal.reason, policy=policy))


def _start(machine: Machine, branch: Branch, threads: list[Branch]) -> Effects:
    """Start ``threads``, which ``branch`` has just forked into."""
    dialect = machine.dialect
    machine.clock_fork(branch)
    yield from voting.start(machine, threads)
    if dialect.join.waits and dialect.join.keeps_blocks_of(dialect, threads[0]):
        yield ShareTail(branch)


def _open_transcripts(machine: Machine, branch: Branch, threads: list[Branch]) -> None:
    join = machine.dialect.join
    if join.shows_threads:
        plans = [t.plan for t in threads]
        headers = [injected(p.joined_header_ids) for p in plans if p is not None]
        transcripts = machine.transcripts[branch].fork(headers)
    else:
        transcripts = [Transcript() for _ in threads]
    machine.transcripts |= zip(threads, transcripts, strict=True)
    if machine.vote is None and join.ballot is not None:
        machine.vote = Vote(join.ballot, machine.world.tokenizer, len(threads))
    if join.asks_by_number:
        machine.numbered |= {(branch, t.plan.number): t for t in threads if t.plan is not None}


def _expect_newlines(machine: Machine, branch: Branch, threads: list[Branch], wrote: list[int]) -> None:
    """Note which newlines the dialect wants where ``branch``, which ``wrote`` this, has forked."""
    thread, join = machine.dialect.thread, machine.dialect.join
    after = thread.newlines_after
    if thread.newlines and (after is None or find_all(after, machine.world.tokenizer.decode(wrote))):
        machine.newlines |= dict.fromkeys(threads, thread.newlines)
    if join.newlines_behind:
        machine.newlines[branch] = join.newlines_behind
