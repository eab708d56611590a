"""What is due in a family at the end of a step: what is to end ends, what can be joined is joined."""

from __future__ import annotations

from functools import partial

from forkjoin_scheduler.families.thread_end import ThreadEnd
from forkjoin_scheduler.machine import cancelling, cutting, ending, joining, voting
from forkjoin_scheduler.machine.effects import Effects, How
from forkjoin_scheduler.machine.machine import Machine


def advance(machine: Machine, *, root_has_ended: bool = False) -> Effects:
    """Do what is due. ``root_has_ended``: whether the engine has ended the request by itself."""
    family = machine.family
    if root_has_ended and family.root.is_live:
        family.end(family.root, ThreadEnd.STOP)
        return
    if machine.buffers_parent_output and machine.stop_piece is not None and family.is_live:
        yield from ending.end_family(machine, How.STOPPED)
    is_spent = machine.is_overdrawn or (family.has_live_threads and not family.remaining)
    if is_spent and machine.finish is None:
        yield from cutting.end_at_budget(machine)
    if machine.cancelled:
        yield from cancelling.advance(machine)
    if machine.dialect.join.when == "first":
        yield from ending.cut_slower(machine)
    yield from voting.advance(machine)
    if machine.dialect.join.moves_kv and any(map(partial(joining.outgrows, machine), machine.parked())):
        policy = machine.dialect.policies.joined_too_long
        yield from cutting.end_at_limit(machine, "joined_too_long", policy)
    while family.is_live and (branch := family.take_joinable()):
        machine.clock_join(branch)
        yield from joining.join(machine, branch)
    if family.is_live and not family.remaining:
        yield from cutting.end_at_budget(machine)
    if machine.own_finish is not None and not family.is_live and machine.finish is None:
        machine.finish = machine.own_finish
