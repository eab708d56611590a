"""Branches are given what they had written in an earlier answer (``request/given.py``), and go on from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from forkjoin_scheduler.dialects.bound import WINDOW_TOKENS
from forkjoin_scheduler.families.family import Branch
from forkjoin_scheduler.joins.joined import is_by_eos
from forkjoin_scheduler.machine import ending
from forkjoin_scheduler.machine.effects import Effects, SampleAgain
from forkjoin_scheduler.machine.machine import Machine
from forkjoin_scheduler.machine.output_token import injected
from forkjoin_scheduler.publish.events import Tokens
from forkjoin_scheduler.request.given import OPEN, Stretch


def give(machine: Machine, branch: Branch, stretch: Stretch) -> Effects:
    """Book ``stretch`` as written by ``branch``, and end it if it had ended.

    Its tokens count as generated: the limits are those of the whole answer.
    """
    token_ids, end = stretch.token_ids, stretch.end
    if branch is machine.family.root and machine.dialect.max_turns is not None:
        machine.num_turns += sum(1 for _ in _refused(machine, machine.world.context(branch), stretch))
    machine.family.generated(branch, token_ids)
    if machine.recording is not None:
        for part in stretch.parts:
            machine.recording.given(branch.index, part)
    shown = token_ids[:-1] if end is not None and is_by_eos(branch, end) else token_ids
    if machine.family.include_threads and branch.plan is not None and shown:
        machine.emit(Tokens(index=branch.index, token_ids=shown))
    machine.transcripts[branch].push(injected(shown))
    if end is not None:
        yield from ending.stop(machine, branch, end)


def go_on(machine: Machine, branch: Branch) -> Effects:
    """``branch`` had been cut off after what it was given, and writes its next token now."""
    yield SampleAgain(branch)


def since(machine: Machine, branch: Branch, stretch: Stretch) -> int:
    """After which token of its context a ``branch`` reads the next call for a fork, once it has ``stretch``.

    After its last call that was refused, for it goes on after one; else where it began to write.
    """
    context = machine.world.context(branch)
    return max((len(context), *_refused(machine, context, stretch)))


def _refused(machine: Machine, context: Sequence[int], stretch: Stretch) -> Iterator[int]:
    """Up to which token of a branch's context each call in ``stretch``, behind ``context``, was refused."""
    bound_dialect, token_ids = machine.terms.bound_dialect, [*context, *stretch.token_ids]
    calls, begin = bound_dialect.calls, len(context)
    for end in range(len(context) + 1, len(token_ids) + (stretch.then == OPEN)):
        may_call = calls is None or token_ids[end - 1] in calls
        if may_call and bound_dialect.triggers(token_ids[max(begin, end - WINDOW_TOKENS) : end]):
            begin = end
            yield end
