"""Families in a replica: their machines are told what was written, and their effects are performed.

The machines are the scheduler's own (``forkjoin_scheduler.machine``). What the engine does with requests and
KV blocks for each effect, ``perform`` does with sequences and counted blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from forkjoin_bench.simulator.replica.ahead import EagerJoinPrefill
from forkjoin_bench.simulator.replica.core import Core
from forkjoin_bench.simulator.replica.sequence import Cause, Family, Kv, Role, Sequence, State
from forkjoin_bench.simulator.replica.spoken import bound, plan
from forkjoin_bench.simulator.replica.stitching import Stitching
from forkjoin_bench.simulator.replica.world import CountedWorld
from forkjoin_bench.simulator.workload import Fork, num_critical, stages_from, widths_of_rounds
from forkjoin_scheduler.dialects.limits import Limits
from forkjoin_scheduler.families.family import Family as Tree
from forkjoin_scheduler.families.thread_end import ThreadEnd
from forkjoin_scheduler.machine import advancing, effects, ending, forking, writing
from forkjoin_scheduler.machine.effects import Effects
from forkjoin_scheduler.machine.machine import Machine, Terms
from forkjoin_scheduler.policy.admission import Need
from forkjoin_scheduler.request.options import CompiledOptions

_NO_LIMITS = Limits(max_threads_per_fork=None, max_forks=None)


class Families:
    """Runs the families of a replica. Owns the parked sequences that still have their copied block."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self.ahead = EagerJoinPrefill(core)
        self.stitching = Stitching(core)
        #: Parked sequences whose threads have not all got their copies of its partly filled last block.
        self._copied_from: list[Sequence] = []

    def part_done(self, sequence: Sequence) -> None:
        """It has written the last token of a part: it forks, or has ended."""
        core = self._core
        core.leave(sequence)
        if sequence.body[sequence.part]:
            sequence.last_at = core.now
        core.name_full(sequence.kv, sequence.kv.computed)
        is_last = sequence.part + 1 == len(sequence.body)
        if sequence.role is Role.ROOT and is_last:
            self._finish(sequence)
            return
        family = sequence.family
        machine = family.machine or self._begin(family)
        wrote = [0] * (sequence.written - sequence.branch.num_generated)
        if sequence.role is Role.ROOT:
            machine.family.generated(sequence.branch, wrote)
        elif wrote:
            end = ThreadEnd.STOP if is_last else None
            self._perform(family, writing.thread_wrote(machine, sequence.branch, wrote, end) or iter(()))
        if sequence.branch.planned:
            self._perform(family, forking.next_stage(machine, sequence.branch))
        elif not is_last:
            self._perform(family, forking.fork(machine, sequence.branch, self._planned(sequence)))
        self._advance(family, machine)

    def _planned(self, sequence: Sequence) -> forking.Fork:
        """The fork that ``sequence`` has come to: a round by itself, but all stages at once."""
        spoken, forks = self._core.engine.spoken, stages_from(sequence.body, sequence.part + 1)
        widths = tuple(len(fork.threads) for fork in forks[: 1 if spoken.asks_again else None])
        return forking.Fork(plan(spoken, widths), sequence.tokens, sequence.tokens)

    def filled(self, fill: Sequence) -> None:
        """A fill has run; its sample is dropped."""
        self._core.leave(fill)
        fill.state, parent, family = State.ENDED, fill.parent, fill.family
        assert parent is not None
        assert family.machine is not None
        if fill.role is Role.AHEAD:
            self.ahead.filled(fill)
            return
        parent.held[fill.sibling_index] = fill.kv
        self._perform(family, ending.closed(family.machine, parent.branch.waits_for[fill.sibling_index]))
        self._advance(family, family.machine)

    def drop_copied_tails(self) -> None:
        """A parked sequence goes on with its first thread's copy of its partly filled last block."""
        left, self._copied_from = self._copied_from, []
        for parent in left:
            if parent.state is not State.PARKED:
                continue
            if any(t.state is State.WAITING and not t.was_preempted for t in parent.threads):
                self._copied_from.append(parent)
            else:
                self._core.drop_tail(parent.kv)

    def _begin(self, family: Family) -> Machine:
        """The machine of a family that forks for the first time."""
        spoken = self._core.engine.spoken
        dialect = bound(spoken, widths_of_rounds(family.request.body) if spoken.asks_again else ())
        tree = Tree(str(family.number), _NO_LIMITS)
        tree.root = family.root.branch
        world = CountedWorld(self._core, family.sequences)
        family.machine = Machine(tree, Terms(CompiledOptions(), dialect, tree.max_tokens), world)
        return family.machine

    def _finish(self, root: Sequence) -> None:
        core, family = self._core, root.family
        root.state = State.ENDED
        core.drop(root.kv)
        family.ended_at = core.now
        del core.families[family]
        if family in core.admitted:
            del core.admitted[family]
            core.lost_blocks.pop(family, None)
            core.asked_next = 0
            core.gate.learn(Need(family.done, family.widest, num_critical(family.request.body)))
        core.counts.ended.append(family)

    def _advance(self, family: Family, machine: Machine) -> None:
        """Let the machine do what is due at the end of a step; what it shows and tells nobody reads."""
        self._perform(family, advancing.advance(machine))
        machine.release()
        machine.events.clear()

    def _perform(self, family: Family, wanted: Effects) -> None:
        for effect in wanted:
            _PERFORMED_BY[type(effect)](self, family, effect)

    # ---- one effect each -------------------------------------------------------------------

    def park(self, family: Family, effect: effects.Park) -> None:
        parent = family.sequences[effect.branch]
        parent.state, parent.fill = State.PARKED, None
        self._core.threads.pop(parent, None)

    def start(self, family: Family, effect: effects.Start) -> None:
        core, thread = self._core, effect.thread
        assert thread.parent is not None
        parent = family.sequences[thread.parent]
        part = parent.body[parent.part + 1]
        assert isinstance(part, Fork)
        names = parent.kv.names[: parent.tokens // core.engine.block_size]
        assert thread.plan is not None
        sequence = Sequence(
            family,
            part.threads[thread.sibling_index],
            parent.tokens + len(thread.plan.header_ids),
            Role.THREAD,
            parent,
            thread.sibling_index,
            Cause.HEADER,
            branch=thread,
            kv=Kv(names=list(names)),
            fork_len=parent.tokens,
            last_at=parent.last_at,
            is_stitched=parent.is_stitched,
        )
        family.sequences[thread] = sequence
        parent.threads.append(sequence)
        core.begun.append(sequence)
        core.threads[sequence] = None

    def share_tail(self, family: Family, effect: effects.ShareTail) -> None:
        self._copied_from.append(family.sequences[effect.branch])

    def keep(self, family: Family, effect: effects.Keep) -> None:
        """Keep the KV that the join takes of a thread; a stitched one's last tokens may lack theirs."""
        core, machine, branch = self._core, family.machine, effect.thread
        assert machine is not None
        thread = family.sequences.pop(branch)
        parent = thread.parent
        assert parent is not None
        thread.state = State.ENDED
        del core.threads[thread]
        num_lacking = core.engine.spoken.close if effect.may_lack_kv else 0
        if num_lacking:
            tokens = thread.kv.computed + num_lacking
            core.fill(parent, thread.sibling_index, Role.CLOSE, Cause.CLOSE, thread.kv, tokens)
            return
        if machine.dialect.join.keeps_blocks_of(machine.dialect, branch):
            parent.held[thread.sibling_index] = thread.kv
        else:
            core.drop(thread.kv)
        self._perform(family, ending.closed(machine, branch))

    def prefill_finished_threads(self, family: Family, effect: effects.PrefillFinishedThreads) -> None:
        self.ahead.prefill(family.sequences[effect.branch])

    def resume(self, family: Family, effect: effects.Resume) -> None:
        core, parent, joined = self._core, family.sequences[effect.branch], effect.plan
        assert family.machine is not None
        if family.machine.dialect.join.moves_kv:
            num_joined = len(joined.token_ids) - len(joined.closing_ids)
            self.stitching.stitch(parent, num_joined)
        elif (kv := self.ahead.take(parent)) is not None:
            core.drop(parent.kv)
            parent.kv = kv
        if joined.keep is not None:
            # Each prompt after the first begins with the same words, and what the request asked.
            num_same = core.engine.spoken.join + family.request.prompt
            core.cut(parent.kv, joined.keep, num_same if effect.branch.num_joined > 1 else 0)
            parent.tokens = joined.keep
        parent.tokens += len(joined.token_ids)
        parent.kv.computed = min(parent.kv.computed, parent.tokens - 1)  # the last is computed to go on from
        parent.threads = []
        parent.part += 2
        parent.left = parent.written_part()
        is_new = joined.keep is not None
        parent.cause = Cause.JOIN if parent.kv.computed or is_new else Cause.RECOMPUTED
        parent.last_at = core.now
        if parent.role is Role.THREAD:
            core.threads[parent] = None
        core.queue(parent)


#: All that well-formed forks without limits, votes and cancels come to.
_PERFORMED_BY: dict[type[effects.Effect], Callable[[Families, Family, Any], None]] = {
    effects.Park: Families.park,
    effects.Start: Families.start,
    effects.ShareTail: Families.share_tail,
    effects.Keep: Families.keep,
    effects.PrefillFinishedThreads: Families.prefill_finished_threads,
    effects.Resume: Families.resume,
}
