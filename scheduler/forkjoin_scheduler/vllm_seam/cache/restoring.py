"""Stitched branches that have lost their blocks, to preemption or eviction, get their KV again.

Invariant (pinned by tests): a restored context has the KV it had.
"""

from __future__ import annotations

from collections.abc import Generator
from functools import partial

from vllm.v1.request import Request, RequestStatus

from forkjoin_scheduler.families.family import Branch, BranchState
from forkjoin_scheduler.vllm_seam.cache import kv
from forkjoin_scheduler.vllm_seam.cache.kv_job import KVJob, PrefillRequest, Work
from forkjoin_scheduler.vllm_seam.cache.kv_jobs import KVJobs
from forkjoin_scheduler.vllm_seam.cache.placing import Placing
from forkjoin_scheduler.vllm_seam.cache.stitching import Source, Stitching
from forkjoin_scheduler.vllm_seam.core import Core
from forkjoin_scheduler.vllm_seam.fence import Fence, drained
from forkjoin_scheduler.vllm_seam.live import LiveFamily
from forkjoin_scheduler.vllm_seam.starts import queues
from forkjoin_scheduler.vllm_seam.threads.performing import Performing


class Restoring:
    """Restores what was lost. Owns what vLLM has taken apart in this step."""

    def __init__(
        self,
        core: Core,
        fence: Fence,
        placing: Placing,
        jobs: KVJobs,
        stitching: Stitching,
        performing: Performing,
    ) -> None:
        self._core = core
        self._fence = fence
        self._placing = placing
        self._jobs = jobs
        self._stitching = stitching
        self._performing = performing
        #: Requests that vLLM preempted in this step and that can't be computed in a row.
        self.lost: list[Request] = []
        #: What suspended requests are to be again: new to the workers, or preempted.
        self._resume_as: dict[str, RequestStatus] = {}

    def is_computed_otherwise(self, request: Request) -> bool:
        """Whether ``request``, which vLLM is about to preempt, can't be computed again in a row.

        What is in flight for such a one would end it, or fork it, without its KV.
        """
        return request.request_id in self._jobs.prefills or not self._placing.may_be_hashed(request)

    def forget(self, request_id: str) -> None:
        """Keep nothing of a request that vLLM has forgotten."""
        self._resume_as.pop(request_id, None)

    def preempted(self, request: Request, *, is_lost: bool) -> None:
        """Let ``request``, which vLLM has preempted, wait where it belongs; later it is restored, if lost."""
        if is_lost:
            self.lost.append(request)
        if self._core.bound_dialect is not None:
            queues.requeue(self._core.scheduler, request)

    def restore_all(self) -> None:
        """See to it that what vLLM has preempted gets the KV again that it had."""
        self._fence.each("restore", [(request,) for request in drained(self.lost)], self.restore_lost)

    def restore_lost(self, request: Request) -> None:
        """See to it that a ``request`` that vLLM has preempted is computed as it was, not in a row."""
        if request.is_finished():
            return
        if job := self._jobs.prefills.get(request.request_id):
            # A linear one vLLM computes again by itself.
            if job.fill is not None and not job.fill.is_linear:
                self._jobs.restart(job)
            return
        live, branch = self._core.branch_of(request)
        if branch.joined_forks:
            self._set_aside(request)
            self._jobs.start(live, partial(self._restored, live, branch))

    def suspend_family(self, live: LiveFamily) -> None:
        """Take all KV of a stitched family back; ``regain_family`` lets it be recomputed."""
        self._jobs.drop(live)
        kv.release(self._core.kv_cache_manager, *live.take_held(list(live.held)))
        for branch in live.family.root.subtree():
            if branch.is_live and (request := self._core.requests.get(branch.request_id)):
                self._suspend(request)
        self.lost = [r for r in self.lost if r.status == RequestStatus.PREEMPTED]

    def regain_family(self, live: LiveFamily) -> None:
        """Let all KV of a suspended family be recomputed."""
        self._jobs.start(live, partial(self._restored, live, live.family.root))

    def _suspend(self, request: Request) -> None:
        if request.status == RequestStatus.RUNNING:
            self._core.scheduler.running.remove(request)
            self._core.scheduler.preempt(request)
        else:
            self._core.kv_cache_manager.free(request)
            self._placing.unstitch(request.request_id)
        if request.status == RequestStatus.WAITING_FOR_STREAMING_REQ:
            queues.repark(self._core.scheduler, request, 0)
        else:
            request.num_computed_tokens = 0
            self._set_aside(request)

    def _set_aside(self, request: Request) -> None:
        """Let a waiting ``request``, which holds no blocks, wait on until its KV is recomputed."""
        self._resume_as[request.request_id] = request.status
        queues.suspend(self._core.scheduler, request)

    def _restored(self, live: LiveFamily, branch: Branch, job: KVJob) -> Work:
        parent = branch.parent
        yield from self._restore(job, live, branch, None if parent is None else parent.request_id)

    def _restore(
        self, job: KVJob, live: LiveFamily, branch: Branch, source: Source
    ) -> Generator[PrefillRequest, kv.HeldBlocks, None]:
        """Recompute what a suspended ``branch`` has lost, and all beneath it.

        While it does, a branch that has gone on may end the answer, and with it cancel or cut one that is
        still waited for. And it may be started again at any place: what has its KV is left alone.
        """
        if self._lacks_kv(branch):
            yield from self._restore_own(job, live, branch, source)
        if branch.state is not BranchState.PARKED:
            return
        yield from self._restore_ended(job, live, branch)
        for thread in branch.waits_for:
            yield from self._restore(job, live, thread, branch.request_id)

    def _lacks_kv(self, branch: Branch) -> bool:
        """Whether a branch that has not ended waits for its KV to be recomputed."""
        request = self._core.requests.get(branch.request_id)
        if request is None or request.status != RequestStatus.WAITING_FOR_STREAMING_REQ:
            return False
        return not request.num_computed_tokens

    def _restore_own(
        self, job: KVJob, live: LiveFamily, branch: Branch, source: Source
    ) -> Generator[PrefillRequest, kv.HeldBlocks, None]:
        """Let ``branch`` run again on the KV after its last join, or wait with all of it."""
        request = self._core.request_of(branch)
        context = list(request._all_token_ids)
        start, offsets = yield from self._stitching.replay_forks(job, live, branch, context, source)
        if not self._lacks_kv(branch):
            if start is not None:
                kv.release(self._core.kv_cache_manager, start.held, *start.rest)
            return
        if branch.state is not BranchState.PARKED:
            if start is not None:
                self._placing.start_stitched(request, start, offsets)
            queues.regain(
                self._core.scheduler,
                request,
                0 if start is None else start.num_tokens,
                self._resume_as.pop(request.request_id),
            )
            return
        held = job.take((yield self._stitching.fill(context, start, source, branch, offsets)))
        if not self._lacks_kv(branch):
            kv.release(self._core.kv_cache_manager, held)
            return
        kv.transfer_blocks(self._core.kv_cache_manager, request, held)
        queues.repark(self._core.scheduler, request, len(context))

    def _restore_ended(
        self, job: KVJob, live: LiveFamily, branch: Branch
    ) -> Generator[PrefillRequest, kv.HeldBlocks, None]:
        """Compute the threads of a parked ``branch`` that have ended.

        Before any that has not goes on: when that one ends, the branch may have to join.
        """
        ended = [
            t for t in branch.waits_for if t.request_id not in self._core.threads and t not in live.closing
        ]
        for thread in ended:
            if thread in live.held:
                continue
            context = self._stitching.context(live, thread)
            computed = yield from self._stitching.replay(job, live, thread, context, branch.request_id)
            if (held := self._stitching.taken_for(branch, job, computed)) is None:
                return
            live.held[thread] = held
        for thread in ended:
            if thread.is_live:
                self._performing.closed(live, thread)
