"""ForkJoinScheduler: vLLM's scheduler, in which a request may fork into threads and join.

A fork, step by step: a branch samples the trigger (``_update_request_with_output``); at the end
of that step it is parked, still holding its KV blocks, and its threads are queued before all
waiting requests; in the next step each starts on its parent's blocks, by reference, and computes
its header only. Their tokens leave as the request's, in outline order. When the last has ended,
the branch adopts the first thread's blocks and is resumed to prefill the others' tokens.

Invariants (pinned by tests): a parked branch is in no queue that runs; every block that a family
holds is in the name of a live request or in ``LiveFamily.held``; each request ends exactly once.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vllm.logger import init_logger
from vllm.v1.core.kv_cache_manager import KVCacheBlocks
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.outputs import LogprobsLists, ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from forkjoin_scheduler.dialect import Dialect, Policy
from forkjoin_scheduler.errors import BadRequestOptions
from forkjoin_scheduler.family import Branch, BranchState, Family, ThreadEnd
from forkjoin_scheduler.fork import Refusal, plan_fork
from forkjoin_scheduler.join import close_block_ids, end_policy, plan_join
from forkjoin_scheduler.options import RequestOptions, parse_options
from forkjoin_scheduler.settings import KEY, Settings
from forkjoin_scheduler.vllm_seam import compat, kv, queues
from forkjoin_scheduler.vllm_seam.live import LiveFamily
from forkjoin_scheduler.vllm_seam.outputs import Piece, injected
from forkjoin_scheduler.vllm_seam.requests import fold, new_thread
from forkjoin_scheduler.vllm_seam.sampling import resumed_params, thread_params
from forkjoin_scheduler.vllm_seam.tokenizer import EngineTokenizer, end_of_sequence_ids

logger = init_logger(__name__)

STOPPED, CAPPED = RequestStatus.FINISHED_STOPPED, RequestStatus.FINISHED_LENGTH_CAPPED


class ForkJoinScheduler(AsyncScheduler):
    """AsyncScheduler (which serves sync scheduling too) with fork and join."""

    max_num_active_reqs: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._settings = Settings.model_validate(self.vllm_config.additional_config.get(KEY, {}))
        self._live: dict[str, LiveFamily] = {}
        self._threads: dict[str, tuple[LiveFamily, Branch]] = {}
        self._triggered: list[Request] = []
        #: Aborted families whose last events have not left yet.
        self._parting: list[LiveFamily] = []
        self._num_slots: int = self.max_num_active_reqs
        if self._settings.dialect is None:
            return
        self._dialect: Dialect = self._settings.dialect
        compat.check_version()
        compat.check_config(self.vllm_config)
        self._tokenizer = EngineTokenizer.from_model_config(self.vllm_config.model_config)
        self._dialect.check_tokenizer(self._tokenizer)
        self._eos_ids = end_of_sequence_ids(self.vllm_config.model_config)
        self._trigger_id = self._tokenizer.token_id(self._dialect.trigger)
        self._end_id = self._tokenizer.token_id(self._dialect.thread.end)

    # ---- what vLLM calls -------------------------------------------------------------------

    def add_request(self, request: Request) -> None:
        super().add_request(request)
        if self._settings.dialect is not None and self._may_fork(request):
            cap = self._options(request).limits(self._settings.limits).max_total_tokens
            request.max_tokens = min(request.max_tokens, cap or request.max_tokens)

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        # Parked branches are counted as active, though they need no slot of the runner: without
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
        if self._settings.dialect is None:
            return result
        if self._live:
            for outputs in result.values():
                outputs.outputs = [o for o in outputs.outputs if not self._take(o)]
        triggered, self._triggered = self._triggered, []
        for request in triggered:
            if not request.is_finished() and self._may_fork(request):
                self._try_fork(request)
        parting, self._parting = self._parting, []
        for live in [*self._live.values(), *parting]:
            self._advance(live)
            if leaving := live.leaving():
                client = live.request.client_index
                result.setdefault(client, EngineCoreOutputs()).outputs.extend(leaving)
            if not live.family.is_live:
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
                live.transcripts[live.family.root].release()
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
        if self._settings.dialect is None or not new_token_ids:
            return new_token_ids, stopped
        if live := self._live.get(request.request_id):
            live.family.generated(live.family.root, new_token_ids)
            live.clock_token(live.family.root)
        if not stopped and new_token_ids[-1] == self._trigger_id:
            self._triggered.append(request)
        return new_token_ids, stopped

    def _get_local_prefix_cache_hit(self, request: Request) -> tuple[KVCacheBlocks, int, int, bool]:
        """A thread starts on its parent's blocks, where those are still held."""
        if entry := self._threads.get(request.request_id):
            parent = self._request_of(entry[1].parent)
            if shared := min(parent.num_computed_tokens, request.num_tokens - 1):
                blocks = kv.shared_prefix(self.kv_cache_manager, parent.request_id, shared)
                return blocks, shared, 0, False
        return super()._get_local_prefix_cache_hit(request)

    def _free_request_blocks(self, request: Request) -> None:
        """The first thread's blocks are held back: its text is a true prefix of the join."""
        entry = self._threads.get(request.request_id)
        if entry and request.status in (STOPPED, CAPPED):
            live, thread = entry
            if thread.position == 0 and thread.is_live:
                live.held[thread] = kv.hold(self.kv_cache_manager, request)
                return
        super()._free_request_blocks(request)

    # ---- fork ------------------------------------------------------------------------------

    def _may_fork(self, request: Request) -> bool:
        """Whether fork/join has to do with ``request`` at all (the exceptions are in the README)."""
        return self._options(request).enabled and not (
            request.use_structured_output
            or request.resumable
            or request.prompt_embeds is not None
            or request.mm_features
        )

    def _try_fork(self, request: Request) -> None:
        """Fork ``request``, whose last token is the trigger, unless something speaks against it."""
        live, branch = self._threads.get(request.request_id) or self._root_of(request)
        family = live.family
        plan = plan_fork(
            self._dialect,
            family.limits,
            list(request.all_token_ids),
            self._tokenizer,
            num_forks=family.num_forks,
            depth=branch.depth,
            max_model_len=self.max_model_len,
        )
        if isinstance(plan, Refusal):
            self._refuse(live, branch, plan)
            return
        queues.park(self, request)
        threads = family.fork(branch, plan)
        headers = [injected(p.joined_header_ids) for p in plan.threads]
        transcripts = live.transcripts[branch].fork(headers)
        live.transcripts |= zip(threads, transcripts, strict=True)
        live.clock_fork(branch)
        for thread in threads:
            self._start_thread(live, thread, request)
        live.tell(
            "forked",
            num_duplicates=plan.num_duplicates,
            shared_tokens=request.num_computed_tokens,
            parent_index=branch.index,
            threads=[
                {"index": t.index, "number": p.number, "title": p.title}
                for t, p in zip(threads, plan.threads, strict=True)
            ],
        )

    def _refuse(self, live: LiveFamily, branch: Branch, refusal: Refusal) -> None:
        live.tell("refused", reason=refusal.reason, policy=refusal.policy.value)
        if refusal.policy is Policy.END_REQUEST:
            closing = close_block_ids(self._dialect, self._tokenizer)
            live.transcripts[branch].push(injected(closing))
            self._end_family(live, CAPPED)

    def _options(self, request: Request) -> RequestOptions:
        params = request.sampling_params
        extra = (params.extra_args or {}) if params is not None else {}
        try:
            options = parse_options(extra.get(KEY, {}))
            options.check_caps(self._settings.caps)
        except BadRequestOptions as error:
            # The front end answers these with a 400; what comes around it must not end the engine.
            logger.warning("%s: %s; decoding sequentially", request.request_id, error)
            return RequestOptions(enabled=False)
        return options

    def _root_of(self, request: Request) -> tuple[LiveFamily, Branch]:
        """The family of a request that is no thread, new if it has not forked yet."""
        live = self._live.get(request.request_id)
        if live is None:
            options = self._options(request)
            limits = options.limits(self._settings.limits)
            family = Family(request.request_id, limits, include_threads=options.include_threads)
            family.generated(family.root, list(request.output_token_ids))
            assert request.sampling_params is not None
            live = LiveFamily(family, request, request.sampling_params, request.max_tokens)
            self._live[request.request_id] = live
        return live, live.family.root

    def _start_thread(self, live: LiveFamily, thread: Branch, parent: Request) -> None:
        assert thread.plan is not None
        header_ids = thread.plan.header_ids
        params = self._thread_params(live, thread, parent.num_tokens + len(header_ids))
        request = new_thread(parent, thread.request_id, header_ids, params)
        self._threads[request.request_id] = (live, thread)
        queues.start(self, request)

    def _thread_params(self, live: LiveFamily, thread: Branch, num_tokens: int) -> Any:
        assert self._end_id is not None
        return thread_params(
            live.params,
            self._dialect.sampling.thread,
            end_id=self._end_id,
            max_tokens=live.budget(thread, self.max_model_len - num_tokens),
            generated=live.family.num_generated,
            salt=f"{len(thread.forks)}/{thread.index}",
        )

    def _request_of(self, branch: Branch | None) -> Request:
        assert branch is not None
        return self.requests[branch.request_id]

    # ---- while the threads run -------------------------------------------------------------

    def _take(self, output: EngineCoreOutput) -> bool:
        """Take a thread's output; returns False for every other request's."""
        entry = self._threads.get(output.request_id)
        if entry is None:
            return False
        live, thread = entry
        if thread.state is not BranchState.DECODING:
            return True
        # Several threads end a step together: what is over the budget was never generated.
        token_ids = output.new_token_ids[: live.remaining]
        live.family.generated(thread, token_ids)
        live.clock_token(thread)
        if live.family.include_threads and token_ids:
            live.tell("tokens", index=thread.index, token_ids=token_ids)
        end = self._end_of(output) if output.finished else None
        shown = token_ids[:-1] if end is ThreadEnd.EOS else token_ids
        pieces = [Piece(t, _row(output.new_logprobs, i)) for i, t in enumerate(shown)]
        live.transcripts[thread].push(pieces)
        if end is ThreadEnd.REQUEST_STOP:
            live.stop_reason = output.stop_reason
        if end is not None:
            self._end_thread(live, thread, end)
        return True

    def _end_of(self, output: EngineCoreOutput) -> ThreadEnd:
        if output.finish_reason is not FinishReason.STOP:
            return ThreadEnd.LENGTH
        if output.stop_reason == self._end_id:
            return ThreadEnd.STOP
        if output.stop_reason is None or output.stop_reason in self._eos_ids:
            return ThreadEnd.EOS
        return ThreadEnd.REQUEST_STOP

    def _end_thread(self, live: LiveFamily, thread: Branch, end: ThreadEnd) -> None:
        """Book the end of ``thread`` and let its successors into the transcript."""
        assert thread.parent is not None
        self._threads.pop(thread.request_id, None)
        live.family.end(thread, end)
        transcript = live.transcripts.pop(thread)
        policy = end_policy(self._dialect, end)
        if policy is not None:
            transcript.push(injected(self._tokenizer.encode(self._dialect.thread.close)))
        if end is ThreadEnd.REQUEST_STOP:
            transcript.cut()
            self._cut_behind(live, thread)
        transcript.close()
        self._tell_end(live, thread, policy)
        if thread.parent.state is BranchState.JOINABLE:
            live.joinable.append(thread.parent)
            live.clock_join(thread.parent)

    @staticmethod
    def _tell_end(live: LiveFamily, thread: Branch, policy: Policy | None = None) -> None:
        assert thread.end is not None
        more = {} if policy is None else {"policy": policy.value}
        live.tell(
            "thread_ended",
            index=thread.index,
            reason=thread.end.value,
            num_tokens=thread.num_generated,
            **more,
        )

    def _cut_behind(self, live: LiveFamily, thread: Branch) -> None:
        """The answer ends in ``thread``: cancel its later siblings and all beneath them."""
        assert thread.parent is not None
        for sibling in thread.parent.threads[thread.position + 1 :]:
            if sibling.is_live:
                cancelled = [sibling, *live.family.end(sibling, ThreadEnd.CANCELLED)]
                super().finish_requests(self._forget(live, cancelled), RequestStatus.FINISHED_ABORTED)

    # ---- join, and the end of the family ---------------------------------------------------

    def _advance(self, live: LiveFamily) -> None:
        """Do what is due: end a family out of budget, join the branches whose threads have ended."""
        family = live.family
        if live.request.is_finished():
            if family.is_live:
                family.end(family.root, ThreadEnd.STOP)
            return
        if family.has_forked and live.remaining == 0:
            self._end_at_limit(live, "total_tokens", self._dialect.policies.total_tokens)
        while live.joinable and family.is_live:
            self._join(live, live.joinable.pop())

    def _join(self, live: LiveFamily, branch: Branch) -> None:
        if live.stop_reason is not None and any(t.end is ThreadEnd.REQUEST_STOP for t in branch.threads):
            self._end_branch(live, branch, ThreadEnd.REQUEST_STOP)
            return
        plan = plan_join(self._dialect, branch.threads, self._tokenizer)
        request = self._request_of(branch)
        num_tokens = request.num_tokens + len(plan.token_ids)
        transcript = live.transcripts[branch]
        transcript.push(injected(plan.closing_ids))
        if num_tokens >= self.max_model_len:
            self._end_at_limit(live, "joined_too_long", self._dialect.policies.joined_too_long)
        elif plan.end is not None:
            if plan.end is ThreadEnd.EOS and branch is live.family.root:
                # vLLM keeps the last token of a stopped request out of its text.
                transcript.push([Piece(self._eos_of(branch))])
            branch.token_ids += plan.token_ids
            self._end_branch(live, branch, plan.end)
        else:
            self._resume(live, branch, request, plan.token_ids)

    def _resume(self, live: LiveFamily, branch: Branch, request: Request, token_ids: tuple[int, ...]) -> None:
        """Let ``branch`` go on behind its threads: on the first one's blocks, the rest prefilled."""
        family = live.family
        num_tokens = request.num_tokens + len(token_ids)
        family.join(branch, list(token_ids))
        if branch is family.root:
            params = resumed_params(
                live.params,
                self._dialect.sampling.after_join,
                max_tokens=live.budget(branch, self.max_model_len - num_tokens),
                generated=family.num_generated,
                salt=f"{family.num_forks}/join",
            )
        else:
            params = self._thread_params(live, branch, num_tokens)
        fold(request, token_ids, params)
        num_computed_tokens = request.num_computed_tokens
        if held := live.held.pop(branch.threads[0], None):
            kv.adopt(self.kv_cache_manager, request, held)
            num_computed_tokens = held.num_tokens
        queues.resume(self, request, num_computed_tokens)
        live.tell("joined", prefilled_tokens=num_tokens - num_computed_tokens)

    @staticmethod
    def _eos_of(branch: Branch) -> int:
        """The end-of-sequence token that the first thread to write one wrote."""
        return next(t.token_ids[-1] for t in branch.threads if t.end is ThreadEnd.EOS)

    def _end_branch(self, live: LiveFamily, branch: Branch, end: ThreadEnd) -> None:
        """A parked ``branch`` ends with its threads: the request, or a thread that had forked."""
        status = CAPPED if end is ThreadEnd.LENGTH else STOPPED
        if branch is live.family.root:
            self._end_family(live, status)
            return
        self._release_held(live, branch.threads)
        super().finish_requests([branch.request_id], status)
        self._end_thread(live, branch, end)

    def _end_at_limit(self, live: LiveFamily, reason: str, policy: Policy) -> None:
        live.tell("limited", reason=reason, policy=policy.value)
        self._end_family(live, CAPPED)

    def _end_family(self, live: LiveFamily, status: RequestStatus) -> None:
        """End the request here, with all its threads; what they wrote so far leaves in order."""
        for thread, transcript in live.transcripts.items():
            if thread is not live.family.root:
                transcript.close()
        ids = [live.family.request_id, *self._cancel_threads(live)]
        super().finish_requests(ids, status)
        live.finish_reason = live.request.get_finished_reason()

    def _cancel_threads(self, live: LiveFamily) -> list[str]:
        """End the family's tree; returns the ids of the threads that are to be freed."""
        self._release_held(live, list(live.held))
        family = live.family
        return self._forget(live, family.end(family.root, ThreadEnd.CANCELLED) if family.is_live else [])

    def _forget(self, live: LiveFamily, cancelled: list[Branch]) -> list[str]:
        """Tell of the end of ``cancelled`` threads; returns their request ids."""
        self._release_held(live, cancelled)
        for thread in cancelled:
            self._threads.pop(thread.request_id, None)
            self._tell_end(live, thread)
        return [t.request_id for t in cancelled]

    # ---- KV pressure -----------------------------------------------------------------------

    def _relieve_kv_pressure(self) -> None:
        """Nothing runs and nothing could be started: take back a family's parked blocks.

        Parked branches are no victims of vLLM's preemption, so a pool full of them would wait for
        ever. The youngest gives way; its threads and its join recompute what they shared.
        """
        holding = [live for live in self._live.values() if self._parked_holders(live) or live.held]
        if holding:
            self._evict(max(holding, key=lambda live: live.request.arrival_time))

    def _parked_holders(self, live: LiveFamily) -> list[Request]:
        """The requests of the family's parked branches that hold blocks."""
        requests = [self._request_of(b) for b in live.parked()]
        return [r for r in requests if r.num_computed_tokens > 0]

    def _evict(self, live: LiveFamily) -> None:
        for request in self._parked_holders(live):
            logger.debug("evicting the parked request %s", request.request_id)
            self.kv_cache_manager.free(request)
            queues.requeue_without_blocks(self, request)
        self._release_held(live, list(live.held))

    def _release_held(self, live: LiveFamily, threads: list[Branch]) -> None:
        for thread in threads:
            if held := live.held.pop(thread, None):
                kv.release(self.kv_cache_manager, held)


def _row(logprobs: LogprobsLists | None, index: int) -> LogprobsLists | None:
    return None if logprobs is None else logprobs.slice_request(index, 1)
