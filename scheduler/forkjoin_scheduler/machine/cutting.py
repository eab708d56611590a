"""What ends a family before its time: a budget that is spent, a context that is full, a refused fork.

The rule of what is shown then: each open thread gets the end tag of its dialect and each open block its
own, so the answer can be read as any other, and it ends with ``length``. Which threads were cut, their
ends say.
"""

from __future__ import annotations

from forkjoin_scheduler.dialects.policies import Policy
from forkjoin_scheduler.families.family import Branch, BranchState
from forkjoin_scheduler.families.thread_end import ThreadEnd
from forkjoin_scheduler.families.vote import Vote
from forkjoin_scheduler.joins.joined import between, close_block_ids
from forkjoin_scheduler.machine import ending
from forkjoin_scheduler.machine.effects import Effects, How
from forkjoin_scheduler.machine.machine import Machine
from forkjoin_scheduler.machine.output_token import injected
from forkjoin_scheduler.publish.events import Limited, Voted


def end_at_limit(machine: Machine, reason: str, policy: Policy) -> Effects:
    """End the request at the limit that ``reason`` names."""
    machine.emit(Limited(reason=reason, policy=policy))
    yield from end_closed(machine)


def end_at_budget(machine: Machine) -> Effects:
    """End the request with the last token that its family may write."""
    yield from end_at_limit(machine, "total_tokens", machine.dialect.policies.total_tokens)


def end_closed(machine: Machine, refused: Branch | None = None) -> Effects:
    """End the request, all that is open closed; also the block in which ``refused`` may not fork."""
    if machine.vote is not None:
        _show_first_vote(machine, machine.vote)
    else:
        _close_what_is_open(machine, refused)
    yield from ending.end_family(machine, How.CAPPED)


def _close_what_is_open(machine: Machine, refused: Branch | None) -> None:
    dialect, shows_threads = machine.dialect, machine.dialect.join.shows_threads
    of_block = injected(close_block_ids(dialect, machine.world.tokenizer))
    for branch, transcript in machine.transcripts.items():
        if not branch.is_live:
            continue
        waits = branch.state in (BranchState.PARKED, BranchState.JOINABLE) or bool(branch.planned)
        if branch is refused or (waits and shows_threads):
            transcript.push(of_block)
        if branch.plan is not None:
            closing = dialect.thread.close + dialect.thread.tail + between(dialect, branch)
            transcript.push(injected(machine.world.tokenizer.encode(closing)))


def _show_first_vote(machine: Machine, vote: Vote) -> None:
    """Of a vote that is cut, answer what most have whose threads have ended, or what the first wrote."""
    threads = machine.family.threads
    complete = [t for t in threads if t.end in (ThreadEnd.STOP, ThreadEnd.EOS)]
    voters = complete or [t for t in threads if t.num_generated][:1]
    if not voters:
        return
    winner, result = vote.winner(voters)
    machine.transcripts[machine.family.root].push(machine.transcripts[winner].release())
    machine.emit(Voted(index=winner.index, result=result if complete else None))
