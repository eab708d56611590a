"""ForkJoinScheduler: vLLM's scheduler, in which a request may fork into threads and join.

A fork, step by step: a branch samples the trigger (``hearing.py``); at the end of that step it is
parked, still holding its KV blocks, and its threads are queued before all waiting requests; in the
next step each starts on its parent's blocks, by reference, and computes its header only. Their
tokens leave as the request's, in outline order. When the last has ended (``joining.py``), the
branch adopts the first thread's blocks and is resumed to prefill the others' tokens, or has their
KV moved behind its own (``stitching.py``).

Fork/join code that vLLM's calls come to runs inside a fence (``fence.py``); vLLM's own does not.

Invariants (pinned by tests): a parked branch is in no queue that runs; every block that a family
holds is in the name of a live request, in ``LiveFamily.held`` or in a job; each request ends
exactly once.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.engine import EngineCoreOutputs
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from forkjoin_scheduler.vllm_seam import kv, queues
from forkjoin_scheduler.vllm_seam.admission_gate import AdmissionGate
from forkjoin_scheduler.vllm_seam.core import logger
from forkjoin_scheduler.vllm_seam.fence import drained
from forkjoin_scheduler.vllm_seam.hearing import Hearing
from forkjoin_scheduler.vllm_seam.live import LiveFamily
from forkjoin_scheduler.vllm_seam.load_report import LoadReport
from forkjoin_scheduler.vllm_seam.overview import Overview, Row
from forkjoin_scheduler.vllm_seam.sampling import without_banned
from forkjoin_scheduler.vllm_seam.thread_pacer import ThreadPacer
from forkjoin_scheduler.vllm_seam.victims import Victims
from forkjoin_scheduler.vllm_seam.waiting import Waiters
from forkjoin_scheduler.vllm_seam.wish import note


class ForkJoinScheduler(Hearing):
    """AsyncScheduler (which serves sync scheduling too) with fork and join.

    It holds those who decide and those who tell: ``_gate`` which requests start, ``_pacer`` which threads
    run, ``_victims`` which family gives way; ``_waits`` knows what waits, ``_overview`` tells operators and
    ``_report`` front ends.
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self._gate, self._waits = AdmissionGate(self), Waiters(self)
        if self._spoken is not None:
            self.waiting = self._gate.queue
        self._pacer = ThreadPacer(self, self._gate, self._waits)
        self._victims = Victims(self, self._gate)
        self._overview = Overview(self, self._gate, self._waits)
        num_front_ends = self.vllm_config.parallel_config._api_process_count
        self._report = LoadReport(self, self._gate, self._waits, num_front_ends)
        keeping_families = self._gate, self._waits, self._drafts
        self._collaborators = tuple(one for one in keeping_families if one is not None)
        #: Aborted families whose last events have not left yet.
        self._parting: list[LiveFamily] = []
        #: Stitched families whose blocks were taken back, to be restored when another has ended.
        self._evicted: list[LiveFamily] = []

    # ---- what vLLM calls -------------------------------------------------------------------

    def add_request(self, request: Request) -> None:
        super().add_request(request)
        if self._spoken is not None and request.sampling_params is not None and not request.resumable:
            self._fenced("add", request, self._note_wish, request)

    def _note_wish(self, request: Request) -> None:
        """Note what ``request`` asks of fork/join, and what that means for it from its start."""
        options = self._options(request)
        # Whether it forks or not; one that does counts all its threads.
        cap = options.limits(self._settings.limits).max_total_tokens
        request.max_tokens = min(request.max_tokens, cap or request.max_tokens)
        self._await_answer(request, options)
        wish = self._wish_of(request, options)
        if wish is None:
            if request.use_structured_output:
                self._answers.did_not_join(request)
            return
        if banned := wish.spoken.banned_ids():
            wish.params = request.sampling_params = without_banned(wish.params, banned)
        note(request, wish)

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        # Parked branches are counted as active, though they need no slot of the runner: without
        # this, max_num_seqs parked parents would never let a thread run.
        self.max_num_active_reqs = self._num_slots + self.num_waiting_for_streaming_input
        if self._threads:
            self._fenced("pace", None, self._spare_the_oldest)
            if not self._fenced("pace", None, self._pacer.choose):
                self._pacer.stop()
        pause_state, is_bound = self._pause_state, self.prefill_capacity_bound
        self._gate.door.open()
        self._started.clear()
        begun_only = throttle_prefills and len(self.kv_holding_waiting) > self.num_waiting_for_streaming_input
        if begun_only:  # --prefill-schedule-interval holds prompts back: not what a family goes on with
            self._stop_looking()
        try:
            output = super().schedule(throttle_prefills and not begun_only)
        finally:
            self._pause_state = pause_state  # which the door may have changed for this step
        if begun_only:
            self.prefill_capacity_bound = is_bound
        self._fenced("pace", None, self._pacer.step_scheduled, output)
        self._evict_failed()
        self._fenced("admit", None, self._gate.take_in_started)
        if self._live:
            self._each("fork", drained(self._copied_from), self._drop_copied_tail)
            if self._to_stitch or self._offsets:
                self._fenced("stitch", (*self._to_stitch, *self._offsets), self._give_orders, output)
            self._each("restore", [(request,) for request in drained(self._lost)], self._restore_lost)
            is_idle = not (output.total_num_scheduled_tokens or self.running)
            listened_to = [(live,) for live in self._live.values() if live.waits is not None]
            self._each("waits", listened_to, self._waits.tell)
            if self._live and is_idle and self._pause_state != PauseState.PAUSED_ALL:
                self._fenced("evict", next(reversed(self._live.values())), self._relieve_kv_pressure)
        return output

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        sampled = model_runner_output.sampled_token_ids
        self._fenced("pace", None, self._pacer.step_ended, scheduler_output, sampled)
        if self._drafts is not None and self._live:
            by_request = zip(model_runner_output.req_ids, sampled, strict=False)
            drafted = scheduler_output.scheduled_spec_decode_tokens
            self._fenced("draft", None, self._drafts.count, drafted, by_request)
        result = super().update_from_output(scheduler_output, model_runner_output)
        self._evict_failed()
        if self._live:
            for of_client in result.values():
                of_client.outputs = self._sift("take", of_client.outputs, self._take)
        self._beside.clear()
        self._each("fork", drained(self._triggered), self._try_fork)
        self._each("ask", drained(self._asking), self._wait_for)
        self._each("swap", drained(self._swapping), self._swap)
        self._each("ahead", drained(self._ahead_waiting), self._continue_ahead)
        num_live, parting = len(self._live), list(self._parting)
        self._each("advance", [(live, result) for live in (*self._live.values(), *parting)], self._move_on)
        self._parting.clear()
        if self._evicted and (parting or self._obituaries or len(self._live) < num_live):
            self._fenced("restore", self._evicted[0], self._restore_evicted)
        if self._spoken is not None:
            self._fenced("load", None, self._report.tell, result)
        if self._obituaries:
            self._publish_obituaries(result)
        return result

    def _move_on(self, live: LiveFamily, result: dict[int, EngineCoreOutputs]) -> None:
        """Do what is due in a family at the end of a step, and let out what it has to say."""
        self._advance(live)
        live.num_planned = 0
        told, leaving = live.leaving(self._engine)
        if not live.family.is_live:  # before its end is told: behind that it can't fail any more
            self._gate.leave(live.request, by_itself=True)
        if told or leaving:
            outputs = result.setdefault(live.request.client_index, EngineCoreOutputs()).outputs
            # The front end takes them in slices (VLLM_V1_OUTPUT_PROC_CHUNK_SIZE) and answers in between:
            # what is told behind the slice that ends a request would find nobody.
            outputs[:0] = told
            outputs += leaving
            live.events = []
        if not live.family.is_live:
            self._live.pop(live.family.request_id, None)
            self._offsets.pop(live.family.request_id, None)

    def finish_requests(
        self, request_ids: str | Iterable[str] | None, finished_status: RequestStatus
    ) -> list[Request]:
        if request_ids is None:
            ids = list(self.requests)
        else:
            ids = [request_ids] if isinstance(request_ids, str) else list(request_ids)
        for request_id in list(ids):
            if live := self._live.get(request_id):
                self._fenced("finish", live, self._part_with, live, ids)
        finished = super().finish_requests(ids, finished_status)
        self._evict_failed()
        return finished

    def _part_with(self, live: LiveFamily, ids: list[str]) -> None:
        """A family is ended from outside: add to ``ids`` the requests that end with its own."""
        self._gate.leave(live.request, by_itself=self._gate.has_stop_string(live.request))
        ids += self._cancel_threads(live)
        live.transcripts[live.family.root].release()
        self._parting.append(self._live.pop(live.family.request_id))

    def reset_prefix_cache(self, reset_running_requests: bool = False, reset_connector: bool = False) -> bool:
        if reset_running_requests:
            self._each("evict", [(live,) for live in self._live.values()], self._evict)
        done = super().reset_prefix_cache(reset_running_requests, reset_connector)
        self._evict_failed()
        self._each("restore", [(request,) for request in drained(self._lost)], self._restore_lost)
        while self._evicted:
            self._fenced("restore", self._evicted[0], self._restore_evicted)
        return done

    # ---- what vLLM asks in the middle of its work ------------------------------------------

    def _handle_blocked_waiting_request(self, request: Request) -> bool:
        """Whether vLLM may start ``request`` in this step."""
        if request.request_id in self._waits.held_back:
            return False
        is_free = super()._handle_blocked_waiting_request(request)
        return is_free and self._answer("admit", request, self._may_start, False)

    def _may_start(self, request: Request) -> bool:
        """Whether there is room for what ``request`` will need; threads and what has run always may."""
        if self._spoken is None or self._holds_kv_blocks(request):
            return True
        lets_in = self._gate.lets_in(request)
        if self._gate.door.is_shut:
            self._stop_looking()
        return lets_in

    def _stop_looking(self) -> None:
        """Let vLLM look at no more new requests in this step: as if it were paused for them."""
        self._pause_state = max(self._pause_state, PauseState.PAUSED_NEW)

    def _free_request(
        self, request: Request, delay_free_blocks: bool = False
    ) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
        if self._spoken is not None:
            self._answer("learn", request, self._gate.ended, None)
        return super()._free_request(request, delay_free_blocks)

    # ---- what front ends ask ---------------------------------------------------------------

    def cancel_thread(self, key: str, index: int, tenant: str) -> str:
        """Let a thread end; returns what its client hears of it: see ``cancelling.py``."""
        return self._cancelling.ask(key, index, tenant)

    def overview(self) -> Row:
        """What runs and what waits: see ``overview.py``."""
        return self._overview.now()

    # ---- KV pressure -----------------------------------------------------------------------

    def _spare_the_oldest(self) -> None:
        """Let whoever vLLM preempts first, the last in its list, be of the family whose turn comes last.

        What runs is to be finished; a thread of an old family may have started a moment ago.
        """
        of_each = max(self._spec_decode_step_blocks, 1)  # blocks that it takes in a step, at most
        if kv.num_free_blocks(self.kv_cache_manager) < len(self.running) * of_each:
            self.running.sort(key=self._turn)

    def _relieve_kv_pressure(self) -> None:
        """Nothing runs and nothing could be started: take back a family's blocks.

        What waits with blocks is no victim of vLLM's preemption, so a pool full of them would wait
        for ever. What a family shared is computed anew.
        """
        if self._has_uncompiled():
            return
        holding = [live for live in self._live.values() if self._holders(live) or live.held or live.jobs]
        if holding:
            victim = self._victims.choose(holding)
            self._fenced("evict", victim, self._evict, victim)
        else:
            self._restore_evicted()

    def _has_uncompiled(self) -> bool:
        """Whether a thread waits for its grammar to be compiled: it will run without any blocks of others."""
        compiling = RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR
        return any(self.requests[i].status == compiling for i in self._threads)

    def _holders(self, live: LiveFamily) -> list[Request]:
        """The requests of the family that wait with blocks."""
        requests = [self.requests.get(b.request_id) for b in live.family.root.subtree() if b.is_live]
        waiting = [r for r in requests if r is not None and r.status != RequestStatus.RUNNING]
        return [r for r in waiting if kv.has_blocks(self.kv_cache_manager, r)]

    def _evict(self, live: LiveFamily) -> None:
        request_id = live.family.request_id
        logger.debug("evicting the family %s", request_id, extra={"forkjoin": {"request_id": request_id}})
        if live.dialect.is_stitched:
            self._suspend_family(live)
            if live not in self._evicted:
                self._evicted.append(live)
            return
        for request in self._holders(live):
            self.kv_cache_manager.free(request)
            queues.repark(self, request, 0)
        self._drop_jobs(live)
        self._release_held(live, list(live.held))

    def _restore_evicted(self) -> None:
        """Let the evicted family whose turn comes first have its KV again.

        Not before another has ended, or none holds blocks: two that take each other's blocks would
        do so for ever.
        """
        self._evicted = [live for live in self._evicted if live.family.request_id in self._live]
        if self._evicted:
            first = min(self._evicted, key=lambda live: self._turn(live.request))
            self._evicted.remove(first)
            self._fenced("restore", first, self._regain_family, first)
