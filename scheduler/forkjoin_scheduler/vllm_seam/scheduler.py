"""ForkJoinScheduler: vLLM's scheduler, in which a request may fork into threads and join.

A fork, step by step: a branch samples the trigger (``hearing.py``); at the end of that step it is
parked, still holding its KV blocks, and its threads are queued before all waiting requests
(``forking.py``, ``starting.py``); in the next step each starts on its parent's blocks, by reference
(``prefixes.py``), and computes its header only. Their tokens leave as the request's, in outline order
(``taking.py``). When the last has ended (``keeping.py``), the branch adopts the first thread's blocks and is
resumed to prefill the others' tokens (``resuming.py``), or has their KV moved after its own
(``stitching.py``). What happens when, machines decide (``machine/``); ``performing.py`` does it.

Fork/join code that vLLM calls runs inside a fence (``fence.py``); vLLM's own does not.

Invariants (pinned by tests): a parked branch is in no queue that runs; every block that a family
holds is in the name of a live request, in ``LiveFamily.held`` or in a job; each request ends
exactly once.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from vllm.v1.core.kv_cache_manager import KVCacheBlocks
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.outputs import DraftTokenIds, ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from forkjoin_scheduler.vllm_seam import compat, versions
from forkjoin_scheduler.vllm_seam.cache import kv
from forkjoin_scheduler.vllm_seam.cache.ahead import EagerJoinPrefill
from forkjoin_scheduler.vllm_seam.cache.eviction import Eviction
from forkjoin_scheduler.vllm_seam.cache.kv_jobs import KVJobs
from forkjoin_scheduler.vllm_seam.cache.loading import Loading
from forkjoin_scheduler.vllm_seam.cache.placing import Placing
from forkjoin_scheduler.vllm_seam.cache.prefixes import Prefixes
from forkjoin_scheduler.vllm_seam.cache.restoring import Restoring
from forkjoin_scheduler.vllm_seam.cache.stitching import Stitching
from forkjoin_scheduler.vllm_seam.cache.victims import Victims
from forkjoin_scheduler.vllm_seam.core import CAPPED, STOPPED, Core
from forkjoin_scheduler.vllm_seam.fence import Fence, drained
from forkjoin_scheduler.vllm_seam.grouped.ordering import Grouping
from forkjoin_scheduler.vllm_seam.kept.leasing import Leasing
from forkjoin_scheduler.vllm_seam.kept.new_weights import NewWeights
from forkjoin_scheduler.vllm_seam.mends.family_drafts import FamilyDrafts
from forkjoin_scheduler.vllm_seam.mends.media_again import send_media_with_each_request
from forkjoin_scheduler.vllm_seam.starts import connector, queues
from forkjoin_scheduler.vllm_seam.starts.admission_gate import AdmissionGate
from forkjoin_scheduler.vllm_seam.starts.answers import Answers
from forkjoin_scheduler.vllm_seam.starts.load_report import LoadReport
from forkjoin_scheduler.vllm_seam.starts.overview import Overview, Row
from forkjoin_scheduler.vllm_seam.starts.params_reader import ParamsReader
from forkjoin_scheduler.vllm_seam.starts.thread_pacer import ThreadPacer
from forkjoin_scheduler.vllm_seam.starts.waiting import Waiters
from forkjoin_scheduler.vllm_seam.threads.cancelling import Cancelling
from forkjoin_scheduler.vllm_seam.threads.facts import Facts
from forkjoin_scheduler.vllm_seam.threads.forking import Forks
from forkjoin_scheduler.vllm_seam.threads.giving import Giving
from forkjoin_scheduler.vllm_seam.threads.handover import Handover
from forkjoin_scheduler.vllm_seam.threads.hearing import Hearing
from forkjoin_scheduler.vllm_seam.threads.keeping import Keeping
from forkjoin_scheduler.vllm_seam.threads.leaving import Leaving
from forkjoin_scheduler.vllm_seam.threads.params import Params
from forkjoin_scheduler.vllm_seam.threads.performing import Performing
from forkjoin_scheduler.vllm_seam.threads.resuming import Resuming
from forkjoin_scheduler.vllm_seam.threads.starting import Starting
from forkjoin_scheduler.vllm_seam.threads.tails import Tails
from forkjoin_scheduler.vllm_seam.threads.taking import Taking

_ONCE_RAN = (RequestStatus.PREEMPTED, RequestStatus.WAITING_FOR_STREAMING_REQ)


class ForkJoinScheduler(AsyncScheduler):
    """AsyncScheduler (which serves sync scheduling too) with fork and join.

    It holds the parts, each made of those before it, and lets each do what is its own at its place in the
    life of a step.
    """

    max_num_active_reqs: int
    _pause_state: PauseState
    prefill_capacity_bound: bool
    num_spec_tokens: int
    num_lookahead_tokens: int
    _spec_decode_step_blocks: int
    use_pp: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        settings = compat.settings_of(self.vllm_config)
        if settings.dialect is not None:
            compat.check_engine(settings.dialect, self.vllm_config, self.kv_cache_config)
        #: Whether a request runs again only when its sample is there: pipeline stages without async
        #: scheduling hear of samples from here. vLLM's scheduler for async would send them a placeholder.
        self._samples_come_back = self.use_pp and not self.scheduler_config.async_scheduling
        self._is_recurrent = kv.is_recurrent(self.kv_cache_manager)
        self._core = core = Core(self, settings)
        self._fence = fence = Fence(core)
        self._placing = placing = Placing(core, fence)
        self._jobs = jobs = KVJobs(core, placing)
        self._answers = answers = Answers(self.structured_output_manager)
        # who starts, who runs, and what is emitted
        self._gate = gate = AdmissionGate(core, fence, placing)
        self._leasing = leasing = Leasing(core, fence, gate)
        self.new_weights = NewWeights(core, fence, leasing)
        self._params_reader = ParamsReader(core, answers, leasing)
        self._waits = waits = Waiters(core, jobs)
        self._pacer = ThreadPacer(core, fence, jobs, gate, waits)
        self._overview = Overview(core, fence, jobs, gate, waits, leasing)
        self._report = LoadReport(core, gate, waits, self.vllm_config.parallel_config._api_process_count)
        self._grouping = Grouping.of(core)
        # what machines want done, and where each effect of theirs is performed
        core.world = Facts(core, fence)
        self._params = params = Params(core)
        self._prefixes = prefixes = Prefixes(core, jobs)
        self._loading = Loading(core, fence, jobs, prefixes)
        self._stitching = stitching = Stitching(core, jobs)
        self._ahead = ahead = EagerJoinPrefill(core, jobs)
        self._keeping = keeping = Keeping(core, placing, jobs, stitching)
        self._resuming = resuming = Resuming(core, answers, placing, stitching, ahead, params)
        self._starting = starting = Starting(core, answers, placing, params)
        self._tails = tails = Tails(core)
        performing = Performing(core, answers, placing, jobs, ahead, keeping, resuming, starting, tails)
        self._performing = performing
        # what branches write, and what comes of it
        self._giving = giving = Giving(core, params, performing)
        self._forks = forks = Forks(core, performing, giving)
        self._hearing, self._drafts = Hearing(core, fence, answers, forks), FamilyDrafts.of(core)
        self._taking, self._handover = Taking(core, jobs, forks, performing), Handover(core, jobs)
        self.cancel_thread, self.release_kept = Cancelling(core).ask, leasing.release
        self._leaving = Leaving(core, placing, gate, performing, giving)
        # whose blocks are taken back, and how they come again
        self._restoring = restoring = Restoring(core, fence, placing, jobs, stitching, performing)
        self._victims = victims = Victims(core, fence, gate)
        self._eviction = Eviction(core, fence, jobs, restoring, gate, victims, leasing)
        fence.look_through([part for part in vars(self).values() if _is_ours(part) and part is not fence])
        if core.bound_dialect is not None:
            self.kv_holding_waiting = queues.BegunQueue(self.policy)
            self.waiting = gate.queue
            if self.connector is not None:
                self._loading.stand_between()
                kv.give_back_with(self.kv_cache_manager, partial(connector.give_back, self))
            send_media_with_each_request()
            if core.bound_dialect.dialect.join.moves_kv:
                kv.guard_hashing(
                    self.kv_cache_manager, lambda r: fence.answer("hash", r, placing.may_be_hashed, False)
                )

    # ---- what vLLM calls -------------------------------------------------------------------

    def add_request(self, request: Request) -> None:
        super().add_request(request)
        if (
            self._core.bound_dialect is not None
            and request.sampling_params is not None
            and not request.resumable
        ):
            self._fence.fenced("add", request, self._params_reader.attach, request)

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        # Parked branches are counted as active, though they need no slot of the runner: without
        # this, max_num_seqs parked parents would never let a thread run.
        num_parked = self._fence.answer(
            "pace", None, lambda _: queues.num_parked(self), self.num_waiting_for_streaming_input
        )
        self.max_num_active_reqs = self._core.num_slots + num_parked
        if lost := self._gate.lost_blocks:
            self._fence.each("admit", [(request_id,) for request_id in lost], self._gate.forget_if_regained)
        if self._core.threads:
            self._fence.fenced("pace", None, self._eviction.spare_the_oldest)
            if not self._fence.fenced("pace", None, self._pacer.choose):
                self._pacer.stop()
        elif self._waits.held_back:  # the last threads ended while they sat out
            self._waits.let_all_run()
        if self._core.leases:
            self._fence.fenced("keep", None, self._leasing.expire)
        pause_state = self._pause_state
        interval: AbstractContextManager[None] = nullcontext()
        self._gate.step_admission.open()
        self._prefixes.started.clear()
        self._prefixes.sharing.clear()
        self._loading.has_postponed = False
        has_begun = len(self.kv_holding_waiting) > self.num_waiting_for_streaming_input
        if has_begun and versions.is_between_prefills(self, throttle_prefills):
            # --prefill-schedule-interval holds prompts back: not what a family goes on with
            self._stop_looking()
            throttle_prefills, interval = False, versions.prefills_beside_the_interval(self)
        try:
            with interval:
                output = super().schedule(throttle_prefills)
        finally:
            self._pause_state = pause_state  # which the door may have changed for this step
        self._step_scheduled(output)
        return output

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        sampled = model_runner_output.sampled_token_ids
        if self._pacer.deadlines is not None:
            self._fence.fenced("pace", None, self._pacer.step_ended, scheduler_output, sampled)
        if self._drafts is not None and self._core.live:
            by_request = zip(model_runner_output.req_ids, sampled, strict=False)
            drafted = scheduler_output.scheduled_spec_decode_tokens
            self._fence.fenced("draft", None, self._drafts.count, drafted, by_request)
        if self._grouping is not None:
            self._fence.fenced("group", None, self._grouping.step_ended, model_runner_output)
        result = super().update_from_output(scheduler_output, model_runner_output)
        self._fence.evict_failed()
        self._step_ended(result)
        return result

    def finish_requests(
        self, request_ids: str | Iterable[str] | None, finished_status: RequestStatus
    ) -> list[Request]:
        if request_ids is None:
            ids = list(self.requests)
        else:
            ids = [request_ids] if isinstance(request_ids, str) else list(request_ids)
        for request_id in list(ids):
            if live := self._core.live.get(request_id):
                self._fence.fenced("finish", live, self._leaving.part_with, live, ids)
        finished = super().finish_requests(ids, finished_status)
        self._fence.evict_failed()
        return finished

    def reset_prefix_cache(self, reset_running_requests: bool = False, reset_connector: bool = False) -> bool:
        if reset_running_requests:
            self._fence.each("evict", [(live,) for live in self._core.live.values()], self._eviction.evict)
        self._fence.fenced("keep", None, self._leasing.reset)
        try:
            return super().reset_prefix_cache(reset_running_requests, reset_connector)
        finally:  # vLLM's raises where a load has blocks: what has lost its own goes on all the same
            self._fence.evict_failed()
            if reset_running_requests:
                self._fence.fenced("weights", None, self.new_weights.computed_again)
            self._restoring.restore_all()
            while waiting := self._eviction.evicted:
                self._fence.fenced("restore", waiting[0], self._eviction.restore_next)

    def update_draft_token_ids(self, draft_token_ids: DraftTokenIds) -> None:
        if self._drafts is not None and self._core.live:
            self._fence.fenced("draft", None, self._drafts.fill_in, draft_token_ids, self.requests)
        super().update_draft_token_ids(draft_token_ids)

    # ---- a step ----------------------------------------------------------------------------

    def _step_scheduled(self, output: SchedulerOutput) -> None:
        """Do what can be done now that it is known what a step computes."""
        core, fence = self._core, self._fence
        fence.fenced("pace", None, self._pacer.step_scheduled, output)
        fence.evict_failed()
        fence.fenced("admit", None, self._gate.take_in_started)
        if self._grouping is not None and not fence.fenced(
            "group", None, self._grouping.step_scheduled, output
        ):
            self._grouping = None  # its tree may be of other rows
        if self._leasing.is_asked:
            for new in output.scheduled_new_reqs:
                fence.fenced("keep", new.req_id, self._leasing.started, new.req_id)
        if not core.live:
            return
        if not output.total_num_scheduled_tokens and self._is_recurrent:
            # The first runner forgets where a parked state was only in a step that computes something.
            self.reset_preempted_req_ids |= output.preempted_req_ids or set()
        if self._tails.copied_from:
            fence.each("fork", drained(self._tails.copied_from), self._tails.drop)
        if len(output.scheduled_new_reqs) > 1:
            fence.fenced("start", None, self._handover.share_starts, output)
        placing = self._placing
        if placed := (*placing.to_stitch, *placing.offsets, *placing.paths):
            fence.fenced("stitch", placed, placing.attach_metadata, output)
        if self._restoring.lost:
            self._restoring.restore_all()
        is_idle = not (output.total_num_scheduled_tokens or self.running or self._loading.has_postponed)
        if listened_to := [(live,) for live in core.live.values() if live.waits is not None]:
            fence.each("waits", listened_to, self._waits.emit)
        if core.live and is_idle and self._pause_state != PauseState.PAUSED_ALL:
            fence.fenced("evict", next(reversed(core.live.values())), self._eviction.relieve)

    def _step_ended(self, result: dict[int, EngineCoreOutputs]) -> None:
        """Take what a step brought, do what it calls for, and put into ``result`` what leaves."""
        core, fence, forks = self._core, self._fence, self._forks
        if core.recordings:
            for of_client in result.values():
                fence.sift("take", of_client.outputs, self._taking.record)
        if core.bound_dialect is not None and core.bound_dialect.stop_texts:
            for of_client in result.values():
                ends: list[EngineCoreOutput] = []
                fence.sift("take", of_client.outputs, partial(self._taking.part_end, ends))
                of_client.outputs += ends
        if core.live:
            for of_client in result.values():
                of_client.outputs = fence.sift("take", of_client.outputs, self._taking.take)
        forks.beside.clear()
        core.forking.clear()
        if forks.triggered:
            fence.each("fork", drained(forks.triggered), forks.try_fork)
        if forks.asking:
            fence.each("ask", drained(forks.asking), forks.wait_for)
        if forks.swapping:
            fence.each("swap", drained(forks.swapping), forks.swap)
        if self._ahead.waiting:
            fence.each("ahead", drained(self._ahead.waiting), self._ahead.go_on)
        num_live, aborted_pending_flush = len(core.live), list(self._leaving.aborted_pending_flush)
        if moving := [(live, result) for live in (*core.live.values(), *aborted_pending_flush)]:
            fence.each("advance", moving, self._leaving.move_on)
            self._leaving.aborted_pending_flush.clear()
        has_ended = aborted_pending_flush or fence.has_obituaries or len(core.live) < num_live
        if has_ended and (waiting := self._eviction.evicted):
            fence.fenced("restore", waiting[0], self._eviction.restore_next)
        if core.bound_dialect is not None:
            fence.fenced("load", None, self._report.emit, result)
        if self._grouping is not None:
            fence.fenced("group", None, self._grouping.emit, result)
        if self._leasing.has_told:
            fence.fenced("keep", None, self._leasing.emit, result)
        if self.new_weights.has_aborted:
            fence.fenced("weights", None, self.new_weights.emit, result)
        if fence.has_obituaries:
            fence.publish_obituaries(result)

    # ---- what vLLM asks in the middle of its work ------------------------------------------

    def _holds_kv_blocks(self, request: Request) -> bool:  # type: ignore[override]  # vLLM calls it on itself
        """Whether ``request`` has begun: it has run before, or is of a family that has.

        vLLM asks so for what holds blocks, and lets that wait before all that does not. One that has
        lost its blocks has begun all the same: after requests that wait for room it might stand for
        ever, for the room that they wait for is its own.
        """
        if self._core.bound_dialect is None or super()._holds_kv_blocks(request):
            return super()._holds_kv_blocks(request)
        request_id = request.request_id
        return (
            request.status in _ONCE_RAN
            or request_id in self._core.threads
            or request_id in self._core.live
            or request_id in self._jobs.prefills
        )

    def get_num_unfinished_requests(self) -> int:
        """A family that is not done is work, though all of it be parked or suspended.

        vLLM takes what is parked for sessions that wait for their clients, and leaves it out.
        """
        num = super().get_num_unfinished_requests()
        return num if self._pause_state == PauseState.PAUSED_ALL else max(num, len(self._core.live))

    def has_requests(self) -> bool:
        """A lease that ends, or has, is told of in a step, though nothing else runs."""
        has_news = self._pause_state == PauseState.UNPAUSED and self._leasing.has_news
        return has_news or super().has_requests()

    def _handle_blocked_waiting_request(self, request: Request) -> bool:
        """Whether vLLM may start ``request`` in this step."""
        if request.request_id in self._waits.held_back:
            return False
        was_loading = connector.is_loading(request)
        is_free = super()._handle_blocked_waiting_request(request)
        if was_loading and is_free:
            self._fence.answer("admit", request, self._loading.ended, None)
        return is_free and self._fence.answer("admit", request, self._may_start, False)

    def _may_start(self, request: Request) -> bool:
        """Whether there is room for ``request``, and for its adapter."""
        if self._core.bound_dialect is None:
            return True
        if not self._waits.has_room_for_adapter(request):
            return False
        gate = self._gate
        may_start = gate.may_go_on(request) if self._holds_kv_blocks(request) else gate.try_admit(request)
        if gate.step_admission.is_shut:
            self._stop_looking()
        return may_start

    def _stop_looking(self) -> None:
        """Let vLLM look at no more new requests in this step: as if it were paused for them."""
        self._pause_state = max(self._pause_state, PauseState.PAUSED_NEW)

    def _get_local_prefix_cache_hit(
        self, request: Request, *limit: int | None
    ) -> tuple[KVCacheBlocks, int, int, bool]:
        """A thread starts on its parent's blocks, where those are still held; a fill on its source's.

        ``limit``: what vLLM 0.33 says beside it. It is of routed experts only, which ``compat.py`` refuses.
        """
        shared = self._fence.answer("start", request, self._prefixes.shared_with_source, None)
        return shared or super()._get_local_prefix_cache_hit(request, *limit)

    def _update_after_schedule(self, scheduler_output: SchedulerOutput) -> None:
        if self._samples_come_back:
            Scheduler._update_after_schedule(self, scheduler_output)
        else:
            super()._update_after_schedule(scheduler_output)
        if self.num_spec_tokens and not self.scheduler_config.async_scheduling:
            # vLLM's scheduler for async leaves placeholders, which the workers fill in. Without async, drafts
            # come after the step, or not at all.
            for request_id in scheduler_output.num_scheduled_tokens:
                self.requests[request_id].spec_token_ids = []

    def _update_request_with_output(
        self, request: Request, new_token_ids: list[int], is_stale: bool = False
    ) -> tuple[list[int], bool]:
        core, append = self._core, super()._update_request_with_output
        if self._samples_come_back:
            append = partial(Scheduler._update_request_with_output, self)
        fj_params = core.fj_params.get(request.request_id)
        if fj_params is None or not new_token_ids:
            return append(request, new_token_ids, is_stale)
        calls = fj_params.bound_dialect.calls
        calls_for_nothing = calls is not None and calls.isdisjoint(new_token_ids) and not fj_params.at_prompt
        if (
            calls_for_nothing and request.request_id not in core.live
        ):  # most tokens: no call more than must be
            return append(request, new_token_ids, is_stale)
        return self._hearing.book(request, fj_params, new_token_ids, is_stale, append)

    def _preempt_request(self, request: Request, timestamp: float, drop_stale_output: bool = False) -> None:
        restoring = self._restoring
        is_lost = self._fence.answer("preempt", request, restoring.is_computed_otherwise, True)
        super()._preempt_request(request, timestamp, drop_stale_output or is_lost)
        self._fence.answer("preempt", request, self._gate.lost, None)
        self._fence.answer("preempt", request, partial(restoring.preempted, is_lost=is_lost), None)

    def _free_request_blocks(self, request: Request) -> None:
        """Blocks that a join or a job needs are held back."""
        by_itself = request.status in (STOPPED, CAPPED)
        if not (by_itself and self._fence.answer("hold", request, self._keeping.hold_back, False)):
            super()._free_request_blocks(request)

    def _free_request(
        self, request: Request, delay_free_blocks: bool = False
    ) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
        if self._core.bound_dialect is not None:
            self._fence.answer("learn", request, self._gate.ended, None)
            self._fence.answer("keep", request, self._leasing.ended, None)
            self._fence.answer("finish", request, partial(connector.forget_uncomputed, self), None)
        freed = super()._free_request(request, delay_free_blocks)
        self._fence.answer("finish", request, self._forget, None)
        return freed

    def _forget(self, request: Request) -> None:
        """Keep nothing of a request that vLLM has forgotten."""
        for keeper in (self._core, self._placing, self._restoring, self._loading, self._leasing):
            keeper.forget(request.request_id)

    # ---- what the parts ask of vLLM (``view.py``) ------------------------------------------

    def end_requests(self, request_ids: Iterable[str], status: RequestStatus) -> None:
        """End these, and no other: not the families that they are of."""
        super().finish_requests(request_ids, status)

    def preempt(self, request: Request) -> None:
        """Take the blocks of a ``request`` that runs; the samples in flight for it are dropped."""
        super()._preempt_request(request, time.monotonic(), drop_stale_output=True)

    # ---- what front ends ask ---------------------------------------------------------------

    def overview(self) -> Row:
        """What runs and what waits: see ``overview.py``."""
        return self._overview.now()


def _is_ours(value: object) -> bool:
    """Whether it is a part, and not vLLM's."""
    return type(value).__module__.startswith("forkjoin_scheduler.")
