"""vLLM's OutputProcessor, which also hears of threads."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from vllm.v1.engine import EngineCoreOutput
from vllm.v1.engine.output_processor import OutputProcessor, OutputProcessorOutput, RequestState
from vllm.v1.metrics.stats import IterationStats

from forkjoin_scheduler import event_log
from forkjoin_scheduler.feed import FEEDS, without_key
from forkjoin_scheduler.vllm_seam import wire

if TYPE_CHECKING:
    from forkjoin_scheduler.vllm_seam.tracing import ThreadTracer


class _ThreadText:
    """Incremental text of one thread: held back while a character is incomplete."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self._shown = self._prefix = 0

    def push(self, tokenizer: Any, token_ids: list[int]) -> str:
        self.ids += token_ids
        before = tokenizer.decode(self.ids[self._prefix : self._shown], skip_special_tokens=False)
        text = tokenizer.decode(self.ids[self._prefix :], skip_special_tokens=False)
        if text.endswith("\ufffd"):
            return ""
        self._prefix, self._shown = self._shown, len(self.ids)
        return str(text[len(before) :])


class ForkJoinOutputProcessor(OutputProcessor):
    """Publishes the thread events to ``FEEDS``; everything else is vLLM's."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._texts: dict[str, dict[int, _ThreadText]] = {}
        self._tracer: ThreadTracer | None = None
        if self.tracing_enabled:
            from forkjoin_scheduler.vllm_seam.tracing import ThreadTracer

            self._tracer = ThreadTracer()

    def process_outputs(
        self, engine_core_outputs: list[EngineCoreOutput], *args: Any, **kwargs: Any
    ) -> OutputProcessorOutput:
        plain = []
        for output in engine_core_outputs:
            if told := wire.unpack(output):
                self._publish(told)
            else:
                plain.append(output)
        return super().process_outputs(plain, *args, **kwargs)

    def abort_requests(self, request_ids: Iterable[str], internal: bool) -> list[str]:
        """Abort requests, also by the ids that their clients gave, which our key stands behind."""
        ids = list(request_ids)
        if not internal:
            given = set(ids)
            ids += [i for i in self.external_req_ids if i not in given and without_key(i) in given]
        return super().abort_requests(ids, internal)

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

    def _publish(self, told: wire.Told) -> None:
        state = self.request_states.get(told.request_id)
        if self._tracer is not None:
            if state is not None:
                self._tracer.hear(told)
            else:
                self._tracer.forget(told.request_id)
        for event in told.events:
            if event["type"] == "tokens":
                texts = self._texts.setdefault(told.request_id, {})
                text = texts.setdefault(event["index"], _ThreadText())
                event["text"] = text.push(self.tokenizer, event["token_ids"])
            elif event["type"] == "family_ended":
                self._texts.pop(told.request_id, None)
        external = None
        if state is not None:
            external = state.parent_req.external_req_id if state.parent_req else state.external_req_id
        if event_log.LOG.isEnabledFor(logging.INFO):
            for event in told.events:
                event_log.log(external or told.request_id, event)
        FEEDS.publish(external, told.events)
