"""Families give their blocks back where nothing could run otherwise, and get them again."""

from __future__ import annotations

from vllm.v1.request import Request, RequestStatus

from forkjoin_scheduler.vllm_seam.cache import kv
from forkjoin_scheduler.vllm_seam.cache.kv_jobs import KVJobs
from forkjoin_scheduler.vllm_seam.cache.restoring import Restoring
from forkjoin_scheduler.vllm_seam.cache.victims import Victims
from forkjoin_scheduler.vllm_seam.core import Core, logger
from forkjoin_scheduler.vllm_seam.fence import Fence, root_id
from forkjoin_scheduler.vllm_seam.kept.leasing import Leasing
from forkjoin_scheduler.vllm_seam.live import LiveFamily
from forkjoin_scheduler.vllm_seam.starts import connector, queues
from forkjoin_scheduler.vllm_seam.starts.admission_gate import AdmissionGate


class Eviction:
    """Takes back the blocks of families, and gives them back. Owns who waits for theirs."""

    def __init__(
        self,
        core: Core,
        fence: Fence,
        jobs: KVJobs,
        restoring: Restoring,
        gate: AdmissionGate,
        victims: Victims,
        leasing: Leasing,
    ) -> None:
        self._core = core
        self._fence = fence
        self._jobs = jobs
        self._restoring = restoring
        self._gate = gate
        self._victims = victims
        self._leasing = leasing
        #: Stitched families whose blocks were taken back, to be restored when another has ended.
        self.evicted: list[LiveFamily] = []

    def spare_the_oldest(self) -> None:
        """Where blocks may run out in the next step, let the family give way whose turn comes last.

        What runs is to be finished; a thread of an old family may have started a moment ago.
        """
        scheduler = self._core.scheduler
        of_each = max(scheduler._spec_decode_step_blocks, 1)  # blocks that it takes in a step, at most
        num_free = kv.num_free_blocks(self._core.kv_cache_manager)
        if num_free < len(scheduler.running) * of_each:
            if self._core.num_free_blocks() < sum(map(self._num_lacking, scheduler.running)):
                self._make_way()
            scheduler.running.sort(key=self._core.turn)  # vLLM preempts the last

    def _num_lacking(self, request: Request) -> int:
        """Blocks that ``request``, which runs, takes in the next step."""
        num_tokens = request.num_tokens_with_spec + request.num_output_placeholders
        num_tokens += self._core.scheduler.num_lookahead_tokens
        return kv.num_lacking(self._core.kv_cache_manager, request, num_tokens)

    def _make_way(self) -> None:
        """Take back the blocks of a family that only waits, if its turn comes after that of all that runs.

        vLLM would preempt older ones, which could use them. What its join needs of threads that have ended is
        left alone: it would be computed again for the sake of little. So is all where no other family runs,
        for a stitched one is restored when another has ended.
        """
        core, running = self._core, self._core.scheduler.running
        ids = {root_id(request.request_id) for request in running}
        if core.settings.admission == "greedy" or core.live.keys().isdisjoint(ids):
            return
        if connector.is_at_work(core.scheduler) or connector.awaits_blocks(core.scheduler):
            return
        last = max(map(core.turn, running))
        waiting = [live for request_id, live in core.live.items() if request_id not in ids]
        younger = [live for live in waiting if core.turn(live.request) > last]
        unended = [live for live in younger if not (live.held or live.jobs)]
        if holding := [live for live in unended if self._gate.holds(live.request)[0]]:
            victim = self._victims.choose(holding)
            self._fence.fenced("evict", victim, self.evict, victim)

    def relieve(self) -> None:
        """Nothing runs and nothing could be started: take back a family's blocks.

        What waits with blocks is no victim of vLLM's preemption, so a pool full of them would wait
        forever. What a family shared is recomputed.
        """
        scheduler = self._core.scheduler
        if self._has_uncompiled() or connector.is_at_work(scheduler) or connector.awaits_blocks(scheduler):
            return
        if self._leasing.make_room():
            return
        holding = [live for live in self._core.live.values() if self._holders(live) or live.held or live.jobs]
        if holding:
            victim = self._victims.choose(holding)
            self._fence.fenced("evict", victim, self.evict, victim)
        else:
            self.restore_next()

    def _has_uncompiled(self) -> bool:
        """Whether a thread waits for its grammar to be compiled: it will run without any blocks of others."""
        compiling = RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR
        return any(self._core.requests[i].status == compiling for i in self._core.threads)

    def _holders(self, live: LiveFamily) -> list[Request]:
        """The requests of the family that wait with blocks."""
        requests = [self._core.requests.get(b.request_id) for b in live.family.root.subtree() if b.is_live]
        waiting = [r for r in requests if r is not None and r.status != RequestStatus.RUNNING]
        waiting = [r for r in waiting if not connector.is_loading(r)]
        return [r for r in waiting if kv.has_blocks(self._core.kv_cache_manager, r)]

    def evict(self, live: LiveFamily) -> None:
        """Take back all blocks of a family; what it has computed is recomputed."""
        request_id = live.family.request_id
        logger.debug("evicting the family %s", request_id, extra={"forkjoin": {"request_id": request_id}})
        self._gate.lost(live.request)
        if live.dialect.join.moves_kv:
            self._restoring.suspend_family(live)
            if live not in self.evicted:
                self.evicted.append(live)
            return
        for request in self._holders(live):
            kv.free(self._core.kv_cache_manager, request)
            queues.repark(self._core.scheduler, request, 0)
        self._jobs.drop(live)
        kv.release(self._core.kv_cache_manager, *live.take_held(list(live.held)))

    def restore_next(self) -> None:
        """Let the evicted family whose turn comes first have its KV again.

        Not before another has ended, or none holds blocks: two that take each other's blocks would
        do so forever.
        """
        self.evicted = [live for live in self.evicted if live.family.request_id in self._core.live]
        if self.evicted:
            first = min(self.evicted, key=lambda live: self._core.turn(live.request))
            self.evicted.remove(first)
            self._fence.fenced("restore", first, self._restoring.regain_family, first)
