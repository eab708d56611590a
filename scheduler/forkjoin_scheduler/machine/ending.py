"""How threads and families end: the events, and what is kept of their KV."""

from __future__ import annotations

from forkjoin_scheduler.dialects.policies import Policy
from forkjoin_scheduler.families.family import Branch, BranchState
from forkjoin_scheduler.families.thread_end import ThreadEnd
from forkjoin_scheduler.joins.joined import closing_ids_of, end_policy
from forkjoin_scheduler.machine.effects import (
    Effects,
    EndFamily,
    Forget,
    How,
    Keep,
    PrefillFinishedThreads,
    Stop,
)
from forkjoin_scheduler.machine.machine import Machine
from forkjoin_scheduler.machine.output_token import injected
from forkjoin_scheduler.publish.events import ThreadEnded

#: How a thread ends that nothing outside of it has ended.
_BY_ITSELF = (ThreadEnd.STOP, ThreadEnd.EOS, ThreadEnd.LENGTH, ThreadEnd.REFUSED)
_FINISH = {How.STOPPED: "stop", How.CAPPED: "length"}


def end_thread(machine: Machine, thread: Branch, end: ThreadEnd) -> Effects:
    """Emit the end of ``thread`` and let its successors into the transcript."""
    wrote_it_itself = thread.state is BranchState.DECODING
    thread.end = end
    transcript = machine.transcripts[thread]
    policy = end_policy(machine.dialect, end)
    if end is ThreadEnd.REQUEST_STOP:
        transcript.cut()
        yield from _cut_behind(machine, thread)
    else:
        transcript.push(injected(closing_ids_of(machine.dialect, thread, machine.world.tokenizer)))
    transcript.close()
    if machine.vote is None:
        machine.transcripts.pop(thread)
    elif end is not ThreadEnd.CUT:
        machine.vote.read(thread)
    _emit_end(machine, thread, policy)
    is_joined = end is not ThreadEnd.REQUEST_STOP and wrote_it_itself
    yield Keep(thread, may_lack_kv=is_joined and machine.dialect.join.moves_kv)


def closed(machine: Machine, thread: Branch) -> Effects:
    """All KV of ``thread``, which has ended, is there: its parent may join when the others have ended."""
    assert thread.parent is not None
    assert thread.end is not None
    # It may end before threads have started that it was to go on to.
    planned = machine.family.end(thread, thread.end, cancels=machine.dialect.join.waits)
    if planned:
        yield from forget(machine, planned)
    yield PrefillFinishedThreads(thread.parent)


def cut_slower(machine: Machine) -> Effects:
    """Where the first thread to end is the last to run: cut the others off where they are.

    One that has forked is cut from its leaves: it joins what its threads wrote so far, so that nothing
    of it is lost, and is cut in a later step.
    """
    for branch in machine.parked():
        if any(t.end in _BY_ITSELF for t in branch.waits_for):
            slower = [t for thread in branch.waits_for for t in thread.subtree()]
            for thread in slower:
                if thread.state is BranchState.DECODING and thread.end is None:
                    yield from stop(machine, thread, ThreadEnd.CUT)


def stop(machine: Machine, thread: Branch, end: ThreadEnd) -> Effects:
    """End ``thread``, which decodes or waits to, where it is; what it wrote is joined."""
    yield Stop(thread)
    yield from end_thread(machine, thread, end)


def cancel(machine: Machine, thread: Branch, end: ThreadEnd) -> Effects:
    """End ``thread`` from outside, in this way, and all beneath it."""
    yield from forget(machine, [thread, *machine.family.end(thread, end)])


def forget(machine: Machine, threads: list[Branch]) -> Effects:
    """Emit the end of ``threads``, which were cancelled."""
    for thread in threads:
        _emit_end(machine, thread)
    yield Forget(threads)


def end_family(machine: Machine, how: How) -> Effects:
    """End the request here, with all its threads; what they wrote so far leaves in order."""
    for thread, transcript in machine.transcripts.items():
        if thread is not machine.family.root:
            transcript.close()
    yield EndFamily(end_tree(machine), how)
    machine.finish = _FINISH[how]


def end_tree(machine: Machine) -> list[Branch]:
    """End what lives of the family's tree; returns the threads among it, whose ends are emitted."""
    family, cancelled = machine.family, []
    if family.root.is_live:
        cancelled = family.end(family.root, ThreadEnd.CANCELLED)
    for thread in family.threads:
        if thread.is_live:
            cancelled += [thread, *family.end(thread, ThreadEnd.CANCELLED)]
    for thread in cancelled:
        _emit_end(machine, thread)
    return cancelled


def _emit_end(machine: Machine, thread: Branch, policy: Policy | None = None) -> None:
    if thread in machine.emitted_ends:
        return  # cancelled while its last tokens got their KV
    if machine.vote is None and thread.end is ThreadEnd.CANCELLED and thread in machine.later:
        machine.later = [later for later in machine.later if later is not thread]
        thread.end = ThreadEnd.NOT_STARTED  # it waited for others
    assert thread.end is not None
    num_tokens = thread.num_generated
    machine.emit(ThreadEnded(index=thread.index, reason=thread.end, num_tokens=num_tokens, policy=policy))
    machine.emitted_ends.add(thread)


def _cut_behind(machine: Machine, thread: Branch) -> Effects:
    """The answer ends in ``thread``: cancel all that stands after it, also after the threads around it."""
    while thread.parent is not None:
        siblings = next(fork for fork in thread.parent.forks if thread in fork)
        for sibling in siblings[thread.sibling_index + 1 :]:
            if sibling.is_live:
                yield from cancel(machine, sibling, ThreadEnd.CANCELLED)
        thread = thread.parent
