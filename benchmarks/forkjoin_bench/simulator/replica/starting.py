"""Which of those that wait start in a step, as vLLM and the admission gate say."""

from __future__ import annotations

from collections import deque
from functools import partial

from forkjoin_bench.simulator.gates import Running
from forkjoin_bench.simulator.replica.begun import BegunQueue
from forkjoin_bench.simulator.replica.core import Core
from forkjoin_bench.simulator.replica.needs import needs
from forkjoin_bench.simulator.replica.pacing import Pacing
from forkjoin_bench.simulator.replica.sequence import Family, Role, Sequence, State
from forkjoin_bench.simulator.workload import Request
from forkjoin_scheduler.policy.admission import Need, Room, readmission

#: As the engine's gate: steps between two looks at a request that did not fit.
ASKED_EVERY = 4


class Starting:
    """Starts sequences. Owns who could not start for want of blocks, and how many were free then."""

    def __init__(self, core: Core, pacing: Pacing) -> None:
        self._core, self._pacing = core, pacing
        self._did_not_fit: tuple[Sequence | None, int] = None, 0
        self._num_free_then = 0

    def start_waiting(self) -> None:
        core = self._core
        skipped: list[tuple[deque[Sequence] | BegunQueue, Sequence]] = []
        while core.budget > 0 and len(core.running) < core.engine.max_num_seqs:
            queue = core.begun or core.waiting
            if not queue:
                break
            sequence = queue[0]
            if not self._may_start(sequence):
                skipped.append((queue, queue.popleft()))
                if self._pacing.step_admission.is_shut:
                    break
            elif self._start(sequence):
                queue.popleft()
            else:
                break
        for queue, sequence in reversed(skipped):
            queue.appendleft(sequence)

    def _may_start(self, sequence: Sequence) -> bool:
        """As ``AdmissionGate`` says."""
        if sequence in self._pacing.held_back:
            return False
        if not self._is_new(sequence):
            return self._may_go_on(sequence)
        may_fork = sequence.family.request.may_fork
        return self._pacing.step_admission.try_admit(partial(self._is_admitted, sequence), may_fork=may_fork)

    def _is_new(self, sequence: Sequence) -> bool:
        return (
            sequence.role is Role.ROOT
            and not sequence.written
            and not sequence.part
            and not sequence.was_preempted
            and sequence.family not in self._core.admitted
        )

    def _may_go_on(self, sequence: Sequence) -> bool:
        """Whether one that has begun may run: what it has no KV for waits for room."""
        core, family = self._core, sequence.family
        if not core.asks_again(sequence):
            return True
        if not self._pacing.step_admission.try_readmit(partial(self._is_admitted_again, family)):
            return False
        del core.lost_blocks[family]
        return True

    def _is_admitted_again(self, family: Family) -> bool:
        core = self._core
        if not core.running:
            return True
        if core.step < core.asked_next:
            return False
        beside = [f for f in core.admitted if f not in core.lost_blocks]
        (need,) = needs(core, [family])
        return self._fits(family, *readmission(need, core.room), beside)

    def _is_admitted(self, root: Sequence) -> bool:
        core = self._core
        if core.step < core.asked_next:
            return False
        found, _ = core.findable(root)
        num_new = core.num_blocks(root.tokens) - len(found) + core.pool.num_unheld(found)
        if not self._fits(root.family, Need(blocks=num_new), core.room, list(core.admitted)):
            return False
        core.admitted[root.family] = None
        root.family.admitted_at = core.step
        return True

    def _fits(self, family: Family, need: Need, room: Room, beside: list[Family]) -> bool:
        core = self._core
        running = Running(len(beside), partial(needs, core, beside), partial(self._plans, beside))
        if not core.gate.admits(need, family.request, running, room):
            core.asked_next = core.step + ASKED_EVERY
            return False
        return True

    def _plans(self, families: list[Family]) -> list[tuple[Request, int]]:
        return [(family.request, self._core.step - family.admitted_at) for family in families]

    def _start(self, sequence: Sequence) -> bool:
        """Let it run if its whole context fits."""
        core = self._core
        if self._did_not_fit == (sequence, core.version) and core.pool.num_free <= self._num_free_then:
            return False
        kv, saved = sequence.kv, 0
        found: list[int] = []
        if not kv.computed:
            found, saved = core.findable(sequence)
        num_wanted = core.num_blocks(sequence.tokens) - len(kv.blocks) - len(found)
        if num_wanted + core.pool.num_unheld(found) > core.pool.num_free:
            self._did_not_fit, self._num_free_then = (sequence, core.version), core.pool.num_free
            return False
        if not kv.computed:
            core.pool.share(found)
            kv.blocks, kv.computed, kv.num_named = found, saved, len(found)
        sequence.state, sequence.rank = State.PREFILLING, next(core.ranks)
        core.version += 1
        core.running[sequence] = core.prefilling[sequence] = None
        core.prefill(sequence, min(sequence.tokens - kv.computed, core.budget))
        return True
