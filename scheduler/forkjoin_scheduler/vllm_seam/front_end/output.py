"""vLLM's OutputProcessor, which also hears of threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from vllm.exceptions import GracefulHTTPError
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest
from vllm.v1.engine.output_processor import OutputProcessor, OutputProcessorOutput, RequestState
from vllm.v1.metrics.stats import IterationStats

from forkjoin_scheduler.errors import FrontEndPlace, Overloaded
from forkjoin_scheduler.policy.backlog import Expected, Tenant, Visit
from forkjoin_scheduler.publish import event_log
from forkjoin_scheduler.publish.events import Event, Load, Tokens
from forkjoin_scheduler.publish.feed import FEEDS, without_key
from forkjoin_scheduler.publish.thread_text import FamilyTexts
from forkjoin_scheduler.request.given import num_tokens_of
from forkjoin_scheduler.request.visits import BACKLOG, TENANT, VISIT, salted
from forkjoin_scheduler.settings import COMPILED
from forkjoin_scheduler.vllm_seam.front_end import wire

if TYPE_CHECKING:
    from forkjoin_scheduler.vllm_seam.front_end.tracing import ThreadTracer


class ForkJoinOutputProcessor(OutputProcessor):
    """Publishes the thread events to ``FEEDS``, and knows what waits; everything else is vLLM's.

    It is where every request passes on its way to the engine, whatever route it came by: so it is
    counted here, refused if too much waits, and batch whose it is.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: By the id of the request.
        self._texts: dict[str, FamilyTexts] = {}
        self._tracer: ThreadTracer | None = None
        if self.tracing_enabled:
            from forkjoin_scheduler.vllm_seam.front_end.tracing import ThreadTracer

            self._tracer = ThreadTracer()

    # ---- to the engine ---------------------------------------------------------------------

    def add_request(self, request: EngineCoreRequest, *args: Any, **kwargs: Any) -> None:
        """Raises vLLM's GracefulHTTPError where too much waits."""
        if request.request_id in self.request_states:  # more of a session's input
            super().add_request(request, *args, **kwargs)
            return
        visit = VISIT.get() or Visit(Tenant())
        params = request.sampling_params
        try:
            BACKLOG.enter(
                request.request_id,
                visit,
                _num_prefilled(request),
                params.max_tokens if params is not None else 0,
                None if visit.group is None else _prompt_of(request),
            )
        except Overloaded as error:
            raise GracefulHTTPError(str(error), HTTPStatus(error.status)) from error
        try:
            _say_whose(request, visit.tenant)
            _place(request, visit.engine)
            super().add_request(request, *args, **kwargs)
        except BaseException:
            BACKLOG.has_ended(request.request_id)
            raise

    def _finish_request(self, req_state: RequestState) -> None:
        super()._finish_request(req_state)
        try:
            BACKLOG.has_ended(req_state.request_id)
        except Exception as error:
            FEEDS.contain("backlog", error)

    # ---- from the engine -------------------------------------------------------------------

    def process_outputs(
        self, engine_core_outputs: list[EngineCoreOutput], *args: Any, **kwargs: Any
    ) -> OutputProcessorOutput:
        plain = []
        for output in engine_core_outputs:
            batch = None
            try:
                batch = wire.unpack(output)
                if batch is None:
                    BACKLOG.has_begun(output.request_id)
            except Exception as error:
                FEEDS.contain("events", error)
            if batch is None:
                plain.append(output)  # also what could not be read: vLLM drops outputs of nobody
            else:
                self._publish(batch)
        return super().process_outputs(plain, *args, **kwargs)

    def abort_requests(self, request_ids: Iterable[str], internal: bool) -> list[str]:
        """Abort requests, also by the ids that their clients gave, which our key stands after.

        A client that asks for it aborts the requests of its own API key, or with the operator's those of
        all; other ids are nobody's. An id that stands there twice is one: vLLM takes it off its lists once.
        """
        ids = list(dict.fromkeys(request_ids))
        if not internal:
            given = set(ids)
            ids += [i for i in self.external_req_ids if i not in given and without_key(i) in given]
            if (visit := VISIT.get()) is not None:
                internal_ids = [i for name in ids for i in self.external_req_ids.get(name, ())]
                sees_all, own = visit.tenant.sees_all, visit.tenant.id
                ids = [i for i in dict.fromkeys(internal_ids) if sees_all or BACKLOG.tenant_of(i) == own]
                internal = True
        aborted: list[str] = super().abort_requests(ids, internal)
        for request_id in aborted:
            BACKLOG.has_ended(request_id)
        return aborted

    def do_tracing(
        self,
        engine_core_output: EngineCoreOutput,
        req_state: RequestState,
        iteration_stats: IterationStats | None,
    ) -> None:
        ending: AbstractContextManager[None] = nullcontext()
        if self._tracer is not None:
            ending = self._tracer.ending(req_state.request_id, req_state.external_req_id)
        with ending:
            super().do_tracing(engine_core_output, req_state, iteration_stats)

    def _publish(self, batch: wire.EventBatch) -> None:
        """Hand on what was batch to all who want to know; an error of one keeps it from no other."""
        state = self.request_states.get(batch.request_id)
        try:
            events = self._with_text(batch)
        except Exception as error:
            FEEDS.contain("text", error)
            events = [e for e in batch.events if not isinstance(e, Tokens)]
        batch = wire.EventBatch(batch.request_id, events, batch.time_ns, batch.engine)
        readers: dict[FrontEndPlace, Callable[[wire.EventBatch, RequestState | None], None]] = {
            "tracing": self._trace,
            "backlog": self._note_load,
            "event_log": self._log,
            "tree": self._emit,
            "feed": self._feed,
        }
        for where, hand_on in readers.items():
            try:
                hand_on(batch, state)
            except Exception as error:
                FEEDS.contain(where, error)

    def _with_text(self, batch: wire.EventBatch) -> list[Event]:
        texts = self._texts.pop(batch.request_id, None) or FamilyTexts()
        assert self.tokenizer is not None  # without one nothing forks
        events = texts.read(self.tokenizer, batch.events)
        if texts.has_any:
            self._texts[batch.request_id] = texts
        return events

    def _trace(self, batch: wire.EventBatch, state: RequestState | None) -> None:
        if self._tracer is not None:
            if state is not None:
                self._tracer.hear(batch)
            else:
                self._tracer.forget(batch.request_id)

    def _note_load(self, batch: wire.EventBatch, _: RequestState | None) -> None:
        for event in batch.events:
            if isinstance(event, Load):
                BACKLOG.expected = Expected(event.expected_tokens, event.expected_threads)

    def _log(self, batch: wire.EventBatch, state: RequestState | None) -> None:
        if event_log.is_wanted():
            for event in batch.events:
                event_log.log(_external_id(state) or batch.request_id, event)

    def _emit(self, batch: wire.EventBatch, state: RequestState | None) -> None:
        if state is not None and (request_id := _external_id(state)) is not None:
            FEEDS.emit(request_id, state.request_index, batch.events)

    def _feed(self, batch: wire.EventBatch, state: RequestState | None) -> None:
        FEEDS.publish(_external_id(state), batch.events, batch.engine)


def _external_id(state: RequestState | None) -> str | None:
    """The id that the request has for its client; None if it is gone."""
    if state is None:
        return None
    external: str = state.parent_req.external_req_id if state.parent_req else state.external_req_id
    return external


def _place(core_request: EngineCoreRequest, engine: int | None) -> None:
    """Send it to ``engine``, unless the client has chosen another."""
    if core_request.data_parallel_rank is None:
        core_request.data_parallel_rank = engine


def _num_prefilled(request: EngineCoreRequest) -> int:
    """Tokens that ``request`` comes with: its prompt, and what the tree has that it goes on from."""
    given = _given_of(request)
    num_given = 0 if given is None else num_tokens_of(given)  # in the event loop, for each of ``n`` again
    return len(request.prompt_token_ids or ()) + num_given


def _given_of(request: EngineCoreRequest) -> Any:
    """The tree that ``request`` goes on from, as it is sent; None if there is none."""
    extra_args = None if request.sampling_params is None else request.sampling_params.extra_args
    return ((extra_args or {}).get(COMPILED) or {}).get("given")


def _prompt_of(request: EngineCoreRequest) -> tuple[object, ...] | None:
    """What tells the prompt of ``request`` from others; None if its tokens alone do not.

    A tree that it goes on from is prefilled with them, and may differ among equal prompts.
    """
    if request.mm_features or request.prompt_embeds is not None or request.prompt_token_ids is None:
        return None
    if _given_of(request) is not None:
        return None
    return (
        request.cache_salt,
        request.lora_request and request.lora_request.lora_int_id,
        *request.prompt_token_ids,
    )


def _say_whose(request: EngineCoreRequest, tenant: Tenant) -> None:
    """Tell the engine core whose ``request`` is, in the place of what a client may have put there."""
    if tenant.cache is not None:
        request.cache_salt = salted(tenant.cache, request.cache_salt)
    params = request.sampling_params
    if params is None:
        return
    others = {name: value for name, value in (params.extra_args or {}).items() if name != TENANT}
    if tenant.id:
        told = {"id": tenant.id, "weight": tenant.weight}
        most = {} if tenant.max_kept_tokens is None else {"max_kept_tokens": tenant.max_kept_tokens}
        params.extra_args = others | {TENANT: told | most}
    elif params.extra_args and TENANT in params.extra_args:
        params.extra_args = others
