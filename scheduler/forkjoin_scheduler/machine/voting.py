"""What a vote lets its threads do: start, in waves if the request says so, and end before their time.

They end early because they can change nothing any more, or because a pruning policy stops them.
"""

from __future__ import annotations

from forkjoin_scheduler.families.family import Branch
from forkjoin_scheduler.families.pruner import Pruner
from forkjoin_scheduler.families.thread_end import ThreadEnd
from forkjoin_scheduler.machine import ending
from forkjoin_scheduler.machine.effects import Effects, Start
from forkjoin_scheduler.machine.machine import Machine
from forkjoin_scheduler.policy.waves import first_wave, is_decided, num_needed
from forkjoin_scheduler.publish.events import ThreadsStarted


def start(machine: Machine, threads: list[Branch]) -> Effects:
    """Start ``threads``, which a branch has just forked into: of a vote in waves, the first of them."""
    options = machine.terms.options
    if machine.vote is not None and options.prune is not None:
        machine.pruner = machine.world.pruner(options.prune, machine.vote)
    num_first = len(threads)
    if options.confidence is not None:
        num_first = first_wave(len(threads), options.confidence)
        machine.later = threads[num_first:]
    for thread in threads[:num_first]:
        yield Start(thread)


def advance(machine: Machine) -> Effects:
    """Do what the votes of this step call for: cut the threads of a decided one, start more of others."""
    options = machine.terms.options
    if machine.vote is None or options.wait_for_all:
        return
    has_news = machine.vote.take_news()
    if machine.pruner is not None:
        stopped = _to_prune(machine, machine.pruner)
        has_news |= bool(stopped)
        for thread in stopped:
            yield from ending.cancel(machine, thread, ThreadEnd.PRUNED)
    if not has_news:
        return
    confidence = 1.0 if options.confidence is None else options.confidence
    for branch in machine.parked():
        tally = machine.vote.tally(branch.waits_for)
        if is_decided(tally, confidence):
            yield from _cut(machine, branch)
        elif machine.later:
            num_running = len(tally.open) - len(machine.later)
            yield from _start_more(machine, branch, num_needed(tally, confidence) - num_running)


def _to_prune(machine: Machine, pruner: Pruner) -> list[Branch]:
    """The threads that the request's policy does not let go on.

    A policy that raises is asked no more: the vote goes on without.
    """
    world, threads = machine.world, machine.family.root.waits_for
    free = world.free_kv()
    # of a family that has ended, those that never started still stand among the later ones
    num_running = machine.family.num_live - machine.family.root.is_live - len(machine.later)
    if num_running <= 0:
        return []
    running = {t for t in threads if t.is_live and world.is_running(t)}
    try:
        if not pruner.is_due(machine.family.num_generated, num_running, free):
            return []
        stopped = pruner.to_stop(threads, running, world.holds_kv, free)
    except (Exception, SystemExit) as error:  # the policy may be anybody's
        assert machine.terms.options.prune is not None
        world.blame(machine.terms.options.prune, error)
        machine.pruner = None
        return []
    return [thread for thread in threads if thread.sibling_index in stopped]


def _cut(machine: Machine, branch: Branch) -> Effects:
    """Cut the threads of ``branch``: whatever they voted for, the answer would be the same."""
    machine.later = []
    for thread in branch.waits_for:
        if thread.is_live:
            end = ThreadEnd.CUT if thread.num_generated else ThreadEnd.NOT_STARTED
            yield from ending.cancel(machine, thread, end)


def _start_more(machine: Machine, branch: Branch, num: int) -> Effects:
    if num <= 0:
        return
    starting, machine.later = machine.later[:num], machine.later[num:]
    # They were waited with for what has ended: that is on their way.
    begun = max(t.num_critical for t in branch.waits_for if not t.is_live)
    for thread in starting:
        thread.num_critical = begun
        yield Start(thread)
    machine.emit(
        ThreadsStarted(
            parent_index=branch.index,
            threads=[t.index for t in starting],
            shared_tokens=min(machine.world.num_computed(branch), starting[0].fork_len),
        )
    )
