"""ForkJoinScheduler: vLLM's scheduler, in which a request may fork into threads and join.

A fork, step by step: the parent samples the trigger (``_update_request_with_output``); at the end
of that step it is parked, still holding its KV blocks, and its threads are queued before all
waiting requests; in the next step each starts on the parent's blocks, by reference, and computes
its header only. Their tokens leave as the parent's, in outline order. When the last has ended,
the parent adopts the first thread's blocks and is resumed to prefill the others' tokens.

Invariants (pinned by tests): a parked parent is in no queue that runs; every block that a family
holds is in the name of a live request or in ``_Live.held``; each request ends exactly once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from vllm.logger import init_logger
from vllm.v1.core.kv_cache_manager import KVCacheBlocks
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.outputs import LogprobsLists, ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from forkjoin_scheduler.dialect import Dialect
from forkjoin_scheduler.errors import BadRequestOptions
from forkjoin_scheduler.family import Family, FamilyState, Thread, ThreadEnd
from forkjoin_scheduler.fork import Refusal, plan_fork
from forkjoin_scheduler.join import end_policy, plan_join
from forkjoin_scheduler.options import RequestOptions, parse_options
from forkjoin_scheduler.settings import KEY, Settings
from forkjoin_scheduler.transcript import LinearTranscript
from forkjoin_scheduler.vllm_seam import compat, kv, wire
from forkjoin_scheduler.vllm_seam.outputs import Piece, injected, to_outputs
from forkjoin_scheduler.vllm_seam.requests import fold, forget_in_flight, new_thread
from forkjoin_scheduler.vllm_seam.sampling import resumed_params, thread_params
from forkjoin_scheduler.vllm_seam.tokenizer import EngineTokenizer

logger = init_logger(__name__)


@dataclass
class _Live:
    """A family in the engine: its tree, its parent request, and what waits to leave."""

    family: Family
    parent: Request
    max_tokens: int
    transcript: LinearTranscript[Piece] | None = None
    #: Blocks of the first thread, once it has ended.
    held: kv.HeldBlocks | None = None
    stop_reason: int | str | None = None
    #: Set when the family ended by our decision: vLLM has not told the front end.
    finish_reason: FinishReason | None = None
    pieces: list[Piece] = field(default_factory=list)
    events: list[wire.Event] = field(default_factory=list)

    @property
    def remaining(self) -> int:
        """Tokens that the family may still generate."""
        return max(self.max_tokens - self.family.num_generated, 0)

    @property
    def is_evictable(self) -> bool:
        """Whether it is parked and holds blocks, its parent's or the first thread's."""
        holds_blocks = self.parent.num_computed_tokens > 0 or self.held is not None
        return self.family.state is FamilyState.FORKED and holds_blocks


class ForkJoinScheduler(AsyncScheduler):
    """AsyncScheduler (which serves sync scheduling too) with fork and join."""

    max_num_active_reqs: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        settings = Settings.model_validate(self.vllm_config.additional_config.get(KEY, {}))
        self._dialect: Dialect | None = settings.dialect
        self._limits = settings.limits
        self._live: dict[str, _Live] = {}
        self._threads: dict[str, tuple[_Live, Thread]] = {}
        self._triggered: list[Request] = []
        #: Aborted families whose last events have not left yet.
        self._parting: list[_Live] = []
        self._num_slots: int = self.max_num_active_reqs
        if self._dialect is None:
            return
        compat.check_version()
        compat.check_config(self.vllm_config)
        self._tokenizer = EngineTokenizer.from_model_config(self.vllm_config.model_config)
        self._dialect.check_tokenizer(self._tokenizer)
        self._trigger_id = self._tokenizer.token_id(self._dialect.trigger)
        self._end_id = self._tokenizer.token_id(self._dialect.thread.end)

    # ---- what vLLM calls -------------------------------------------------------------------

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        # Parked parents are counted as active, though they need no slot of the runner: without
        # this, max_num_seqs parked parents would never let a thread run.
        self.max_num_active_reqs = self._num_slots + self.num_waiting_for_streaming_input
        output = super().schedule(throttle_prefills)
        if self._live and not output.total_num_scheduled_tokens and not self.running:
            self._relieve_kv_pressure()
        return output

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        result = super().update_from_output(scheduler_output, model_runner_output)
        if self._dialect is None:
            return result
        for outputs in result.values():
            if self._live:
                outputs.outputs = [o for o in outputs.outputs if not self._take(o)]
        triggered, self._triggered = self._triggered, []
        for request in triggered:
            if not request.is_finished():
                self._try_fork(self._dialect, request)
        parting, self._parting = self._parting, []
        for live in [*self._live.values(), *parting]:
            self._advance(self._dialect, live)
            if leaving := self._leaving(live):
                client = live.parent.client_index
                result.setdefault(client, EngineCoreOutputs()).outputs.extend(leaving)
            if live.family.state is FamilyState.ENDED:
                self._live.pop(live.family.request_id, None)
        return result

    def finish_requests(
        self, request_ids: str | Iterable[str] | None, finished_status: RequestStatus
    ) -> list[Request]:
        if request_ids is None:
            ids = list(self.requests)
        else:
            ids = [request_ids] if isinstance(request_ids, str) else list(request_ids)
        for request_id in list(ids):
            if live := self._live.pop(request_id, None):
                ids += self._cancel_threads(live)
                live.pieces.clear()
                self._parting.append(live)
        return super().finish_requests(ids, finished_status)

    def reset_prefix_cache(self, reset_running_requests: bool = False, reset_connector: bool = False) -> bool:
        if reset_running_requests:
            for live in self._live.values():
                self._evict(live)
        return super().reset_prefix_cache(reset_running_requests, reset_connector)

    # ---- vLLM's own hooks ------------------------------------------------------------------

    def _update_request_with_output(
        self, request: Request, new_token_ids: list[int], is_stale: bool = False
    ) -> tuple[list[int], bool]:
        new_token_ids, stopped = super()._update_request_with_output(request, new_token_ids, is_stale)
        if self._dialect is None or request.request_id in self._threads:
            return new_token_ids, stopped
        if live := self._live.get(request.request_id):
            live.family.parent_generated(len(new_token_ids))
        if not stopped and new_token_ids and new_token_ids[-1] == self._trigger_id:
            self._triggered.append(request)
        return new_token_ids, stopped

    def _get_local_prefix_cache_hit(self, request: Request) -> tuple[KVCacheBlocks, int, int, bool]:
        """A thread starts on its parent's blocks, where those are still held."""
        if entry := self._threads.get(request.request_id):
            parent = entry[0].parent
            if shared := parent.num_computed_tokens:
                blocks = kv.shared_prefix(self.kv_cache_manager, parent.request_id, shared)
                return blocks, shared, 0, False
        return super()._get_local_prefix_cache_hit(request)

    def _free_request_blocks(self, request: Request) -> None:
        """The first thread's blocks are held back: its text is a true prefix of the join."""
        entry = self._threads.get(request.request_id)
        if entry and request.status in (
            RequestStatus.FINISHED_STOPPED,
            RequestStatus.FINISHED_LENGTH_CAPPED,
        ):
            live, thread = entry
            if thread.position == 0 and live.family.state is FamilyState.FORKED:
                live.held = kv.hold(self.kv_cache_manager, request)
                return
        super()._free_request_blocks(request)

    # ---- fork ------------------------------------------------------------------------------

    def _try_fork(self, dialect: Dialect, request: Request) -> None:
        """Fork ``request``, whose last token is the trigger, unless something speaks against it."""
        options = self._options(request)
        if not options.enabled or self._bypasses(request):
            return
        live = self._live.get(request.request_id) or self._new_family(request, options)
        plan = plan_fork(
            dialect,
            live.family.limits,
            live.family.num_forks,
            list(request.all_token_ids),
            self._tokenizer,
        )
        if isinstance(plan, Refusal):
            live.events.append({"type": "refused", "reason": plan.reason, "policy": plan.policy.value})
            return
        self._park(request)
        threads = live.family.fork(plan)
        headers = [[injected(i) for i in t.plan.joined_header_ids] for t in threads]
        live.transcript = LinearTranscript(headers)
        live.pieces += live.transcript.start()
        for thread in threads:
            self._start_thread(live, thread)
        live.events.append(
            {
                "type": "forked",
                "num_duplicates": plan.num_duplicates,
                "shared_tokens": request.num_computed_tokens,
                "threads": [
                    {"index": t.index, "number": t.plan.number, "title": t.plan.title} for t in threads
                ],
            }
        )

    def _options(self, request: Request) -> RequestOptions:
        params = request.sampling_params
        extra = (params.extra_args or {}) if params is not None else {}
        try:
            return parse_options(extra.get(KEY, {}))
        except BadRequestOptions as error:
            # The front end answers these with a 400; what comes around it must not end the engine.
            logger.warning("%s: %s; decoding sequentially", request.request_id, error)
            return RequestOptions(enabled=False)

    @staticmethod
    def _bypasses(request: Request) -> bool:
        """Whether fork/join leaves this kind of request alone (documented in the README)."""
        return bool(
            request.use_structured_output
            or request.resumable
            or request.prompt_embeds is not None
            or request.mm_features
        )

    def _new_family(self, request: Request, options: RequestOptions) -> _Live:
        limits = options.limits(self._limits)
        family = Family(request.request_id, limits, options.include_threads)
        family.parent_generated(request.num_output_tokens)
        cap = limits.max_total_tokens
        max_tokens = request.max_tokens if cap is None else min(cap, request.max_tokens)
        live = _Live(family, request, max_tokens)
        self._live[request.request_id] = live
        return live

    def _park(self, request: Request) -> None:
        """Take the parent out of the running; it keeps its blocks."""
        if request.status == RequestStatus.RUNNING:
            self.running.remove(request)
        else:
            self._dequeue(request)
        forget_in_flight(request)
        self._inflight_prefills.discard(request)
        request.status = RequestStatus.WAITING_FOR_STREAMING_REQ
        self.num_waiting_for_streaming_input += 1
        self._enqueue_waiting_request(request)
        # The V2 runner frees the parent's slot; it is added anew at the join.
        self.reset_preempted_req_ids.add(request.request_id)

    def _start_thread(self, live: _Live, thread: Thread) -> None:
        parent, family = live.parent, live.family
        assert parent.sampling_params is not None
        assert self._end_id is not None
        room = max(self.max_model_len - parent.num_tokens - len(thread.plan.header_ids), 1)
        limit = family.limits.max_tokens_per_thread
        params = thread_params(
            parent.sampling_params,
            end_id=self._end_id,
            max_tokens=max(min(live.remaining, limit or room, room), 1),
            generated=family.num_generated,
            salt=f"{family.num_forks}/{thread.index}",
        )
        request = new_thread(parent, family.thread_id(thread), thread.plan.header_ids, params)
        self._threads[request.request_id] = (live, thread)
        self.requests[request.request_id] = request
        # Drained before ``waiting``: a family that runs is finished before a new one starts.
        self.kv_holding_waiting.add_request(request)

    # ---- while the threads run -------------------------------------------------------------

    def _take(self, output: EngineCoreOutput) -> bool:
        """Take a thread's output; returns False for every other request's."""
        entry = self._threads.get(output.request_id)
        if entry is None:
            return False
        live, thread = entry
        if not thread.is_live:
            return True
        # Several threads end a step together: what is over the budget was never generated.
        token_ids = output.new_token_ids[: live.remaining]
        live.family.thread_generated(thread, token_ids)
        if live.family.include_threads and token_ids:
            live.events.append({"type": "tokens", "index": thread.index, "token_ids": token_ids})
        end = self._thread_end(output) if output.finished else None
        shown = token_ids[:-1] if end is ThreadEnd.EOS else token_ids
        pieces = [Piece(t, _row(output.new_logprobs, i)) for i, t in enumerate(shown)]
        assert live.transcript is not None
        live.pieces += live.transcript.push(thread.position, pieces)
        if end is ThreadEnd.REQUEST_STOP:
            live.stop_reason = output.stop_reason
            live.transcript.cut(thread.position)
            self._cut_behind(live, thread)
        if end is not None:
            self._end_thread(live, thread, end)
        return True

    def _thread_end(self, output: EngineCoreOutput) -> ThreadEnd:
        if output.finish_reason is not FinishReason.STOP:
            return ThreadEnd.LENGTH
        if output.stop_reason == self._end_id:
            return ThreadEnd.STOP
        return ThreadEnd.EOS if output.stop_reason is None else ThreadEnd.REQUEST_STOP

    def _end_thread(self, live: _Live, thread: Thread, end: ThreadEnd) -> None:
        """Book the end of ``thread`` and let its successors into the transcript."""
        assert live.transcript is not None
        assert self._dialect is not None
        live.family.end_thread(thread, end)
        self._threads.pop(live.family.thread_id(thread), None)
        policy = end_policy(self._dialect, end)
        if policy is not None:
            close = self._tokenizer.encode(self._dialect.thread.close)
            live.pieces += live.transcript.push(thread.position, [injected(i) for i in close])
        live.pieces += live.transcript.end(thread.position)
        event = _thread_ended(thread)
        if policy is not None:
            event["policy"] = policy.value
        live.events.append(event)

    def _cut_behind(self, live: _Live, thread: Thread) -> None:
        """The answer ends in ``thread``: cancel its later siblings."""
        later = [t for t in live.family.current[thread.position + 1 :] if t.is_live]
        super().finish_requests([live.family.thread_id(t) for t in later], RequestStatus.FINISHED_ABORTED)
        for sibling in later:
            self._threads.pop(live.family.thread_id(sibling), None)
            live.family.end_thread(sibling, ThreadEnd.CANCELLED)
            live.events.append(_thread_ended(sibling))

    # ---- join, and the end of the family ---------------------------------------------------

    def _advance(self, dialect: Dialect, live: _Live) -> None:
        """Do what is due: end a family out of budget, join one whose threads have ended."""
        family = live.family
        if live.parent.is_finished():
            if family.state is not FamilyState.ENDED:
                family.finish()
        elif family.state is FamilyState.FORKED and live.remaining == 0:
            self._end_family(live, RequestStatus.FINISHED_LENGTH_CAPPED)
        elif family.state is FamilyState.JOINABLE:
            self._join(dialect, live)

    def _join(self, dialect: Dialect, live: _Live) -> None:
        family, parent = live.family, live.parent
        if live.stop_reason is not None:
            self._end_family(live, RequestStatus.FINISHED_STOPPED)
            return
        plan = plan_join(dialect, family.current, self._tokenizer)
        live.pieces += [injected(i) for i in plan.closing_ids]
        too_long = parent.num_tokens + len(plan.token_ids) >= self.max_model_len
        if plan.end is not None or too_long or live.remaining == 0:
            stopped = plan.end is ThreadEnd.EOS and not too_long
            if stopped:
                # vLLM keeps the last token of a stopped request out of its text.
                live.pieces.append(Piece(self._eos_of(live)))
            self._end_family(
                live,
                RequestStatus.FINISHED_STOPPED if stopped else RequestStatus.FINISHED_LENGTH_CAPPED,
            )
            return
        prefix = parent.num_tokens
        assert parent.sampling_params is not None
        fold(
            parent,
            plan.token_ids,
            resumed_params(parent.sampling_params, max_tokens=live.remaining, generated=family.num_generated),
        )
        self._dequeue(parent)
        self.num_waiting_for_streaming_input -= 1
        if live.held is not None:
            kv.adopt(self.kv_cache_manager, parent, live.held)
            live.held = None
            parent.num_computed_tokens = prefix + plan.num_adopted
        parent.status = RequestStatus.WAITING
        self._enqueue_waiting_request(parent)
        family.join()
        live.events.append(
            {"type": "joined", "prefilled_tokens": parent.num_tokens - parent.num_computed_tokens}
        )

    @staticmethod
    def _eos_of(live: _Live) -> int:
        """The end-of-sequence token that the first thread to write one wrote."""
        return next(t.token_ids[-1] for t in live.family.current if t.end is ThreadEnd.EOS)

    def _dequeue(self, request: Request) -> None:
        """Take ``request`` out of whichever queue it waits in."""
        self.waiting.remove_requests([request])
        self.kv_holding_waiting.remove_requests([request])
        self.deferred_waiting.discard(request)

    def _end_family(self, live: _Live, status: RequestStatus) -> None:
        """End the request here, with all its threads; what they wrote so far leaves in order."""
        for thread in live.family.current:
            if thread.is_live:
                assert live.transcript is not None
                live.pieces += live.transcript.end(thread.position)
        ids = [live.family.request_id, *self._cancel_threads(live)]
        super().finish_requests(ids, status)
        live.finish_reason = live.parent.get_finished_reason()

    def _cancel_threads(self, live: _Live) -> list[str]:
        """End the family's tree; returns the ids of the threads that are to be freed."""
        self._release_held(live)
        live_threads = live.family.finish() if live.family.state is not FamilyState.ENDED else []
        live.events += [_thread_ended(t) for t in live_threads]
        ids = [live.family.thread_id(t) for t in live_threads]
        for thread_id in ids:
            self._threads.pop(thread_id, None)
        return ids

    def _leaving(self, live: _Live) -> list[EngineCoreOutput]:
        """What the family sends to the front end in this step."""
        family = live.family
        pieces, live.pieces = live.pieces, []
        events, live.events = live.events, []
        family.num_injected += sum(p.is_injected for p in pieces)
        if family.state is FamilyState.ENDED:
            events.append(
                {
                    "type": "family_ended",
                    "num_threads": len(family.threads),
                    "total_tokens": family.num_generated,
                    "critical_path_tokens": family.num_critical,
                    "injected_tokens": family.num_injected,
                }
            )
        outputs = [wire.pack(family.request_id, events)] if events else []
        return outputs + to_outputs(live.parent, pieces, live.finish_reason, live.stop_reason)

    # ---- KV pressure -----------------------------------------------------------------------

    def _relieve_kv_pressure(self) -> None:
        """Nothing runs and nothing could be started: take back a parked parent's blocks.

        Parked parents are no victims of vLLM's preemption, so a pool full of them would wait for
        ever. The youngest gives way; its threads and its join recompute what they shared.
        """
        parked = [live for live in self._live.values() if live.is_evictable]
        if parked:
            self._evict(max(parked, key=lambda live: live.parent.arrival_time))

    def _evict(self, live: _Live) -> None:
        if not live.is_evictable:
            return
        parent = live.parent
        logger.debug("evicting the parked parent %s", parent.request_id)
        self._dequeue(parent)
        self.kv_cache_manager.free(parent)
        self._release_held(live)
        parent.num_computed_tokens = 0
        self._enqueue_waiting_request(parent)

    def _release_held(self, live: _Live) -> None:
        if live.held is not None:
            kv.release(self.kv_cache_manager, live.held)
            live.held = None


def _thread_ended(thread: Thread) -> wire.Event:
    assert thread.end is not None
    return {
        "type": "thread_ended",
        "index": thread.index,
        "reason": thread.end.value,
        "num_tokens": len(thread.token_ids),
    }


def _row(logprobs: LogprobsLists | None, index: int) -> LogprobsLists | None:
    return None if logprobs is None else logprobs.slice_request(index, 1)
