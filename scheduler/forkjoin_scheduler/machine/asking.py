"""A branch asks for what threads return: whether it may, and what it does until they have ended."""

from __future__ import annotations

from collections.abc import Sequence

from forkjoin_scheduler.dialects.policies import Policy
from forkjoin_scheduler.families.family import Branch, BranchState
from forkjoin_scheduler.families.fork import Refusal
from forkjoin_scheduler.machine import forking
from forkjoin_scheduler.machine.effects import Effects, Park
from forkjoin_scheduler.machine.forking import Fork
from forkjoin_scheduler.machine.machine import Machine
from forkjoin_scheduler.publish.events import Tolerated


def wait_for(machine: Machine, branch: Branch, number: str) -> Effects:
    """``branch`` has asked for what threads return: it stands still until they have ended."""
    if branch.state is not BranchState.DECODING:
        return
    if refusal := refusal_to_ask(machine, branch, number):
        yield from forking.refuse(machine, branch, refusal)
        return
    threads = machine.dialect.join.asked_for(branch, number, machine.numbered)
    if _asks_again(machine, threads):
        policy = machine.dialect.policies.joined_again
        machine.emit(Tolerated(parent_index=branch.index, reason="joined_again", policy=policy))
    machine.asked.update(threads)
    yield Park(branch)
    machine.family.wait(branch, threads)


def refusal_to_ask(
    machine: Machine, branch: Branch, number: str, planned: Sequence[Fork] = ()
) -> Refusal | None:
    """Why ``branch`` may not ask for threads by ``number``; None: it may.

    ``planned``: its forks that were planned in this step and not made yet.
    """
    policies = machine.dialect.policies
    if not _can_ask(machine, branch, number, planned):
        return Refusal("unknown_thread", policies.unknown_thread)
    threads = machine.dialect.join.asked_for(branch, number, machine.numbered)
    if policies.joined_again is not Policy.REPEAT and _asks_again(machine, threads):
        return Refusal("joined_again", policies.joined_again)
    return None


def is_numbered(machine: Machine, branch: Branch, number: str, planned: Sequence[Fork] = ()) -> bool:
    """Whether ``branch`` knows a thread by ``number``, or will when what is ``planned`` has been done."""
    return machine.dialect.join.asks_by_number and _can_ask(machine, branch, number, planned)


def _can_ask(machine: Machine, branch: Branch, number: str, planned: Sequence[Fork]) -> bool:
    join = machine.dialect.join
    threads = (thread for fork in planned for thread in fork.plan.threads)
    return bool(join.asked_for(branch, number, machine.numbered)) or join.is_planned(number, threads)


def _asks_again(machine: Machine, threads: Sequence[Branch]) -> bool:
    """Whether all of ``threads`` have been asked for before."""
    return bool(threads) and machine.asked.issuperset(threads)
