"""OpenTelemetry spans of threads, beneath the request's span, which vLLM makes.

vLLM makes a request's span (``llm_request``) when the request ends, with the time that it began. It
hands it to nobody; but a span processor hears of each span that starts. So while vLLM traces the
end of a request whose family emitted events, ours takes the span that starts: it gets the
family's events, and the spans of the threads become its children. Of requests that are aborted vLLM
makes no span, nor then do their threads have any; likewise where the sampler drops the request's.

Imported only where tracing is on: the OpenTelemetry packages need not be there otherwise.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import cast

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import Span, SpanProcessor, TracerProvider

from forkjoin_scheduler.publish.events import ROOT
from forkjoin_scheduler.publish.feed import FEEDS, key_in
from forkjoin_scheduler.publish.spans import FamilySpans
from forkjoin_scheduler.vllm_seam.front_end import wire

#: The name of vLLM's span.
REQUEST = "llm_request"
THREAD = "llm_thread"


class ThreadTracer(SpanProcessor):
    """Gathers the events of families, and makes spans of them when their requests end."""

    def __init__(self, provider: TracerProvider | None = None) -> None:
        """``provider``: by default the one that vLLM has set in this process."""
        self._families: dict[str, FamilySpans] = {}
        #: The family whose request vLLM makes the span of right now, and the request's id for clients.
        self._ending: tuple[FamilySpans, str] | None = None
        provider = provider or cast(TracerProvider, trace.get_tracer_provider())
        self._tracer = provider.get_tracer("forkjoin")
        provider.add_span_processor(self)

    def hear(self, batch: wire.EventBatch) -> None:
        """Take in an event of a family whose request has not ended."""
        family = self._families.setdefault(batch.request_id, FamilySpans())
        for event in batch.events:
            family.hear(event, batch.time_ns)

    def forget(self, request_id: str) -> None:
        """The request has been aborted."""
        self._families.pop(request_id, None)

    @contextlib.contextmanager
    def ending(self, request_id: str, external_id: str) -> Iterator[None]:
        """The span of this request is made inside, by vLLM."""
        family = self._families.pop(request_id, None)
        self._ending = None if family is None else (family, external_id)
        try:
            yield
        finally:
            self._ending = None

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Complete the span of the request that is ending."""
        if self._ending is not None and span.name == REQUEST:
            (family, external_id), self._ending = self._ending, None
            try:
                self._complete(span, family, external_id)
            except Exception as error:
                FEEDS.contain("tracing", error)

    def _complete(self, request_span: Span, family: FamilySpans, external_id: str) -> None:
        now_ns, key = time.time_ns(), key_in(external_id)
        spans: dict[int, trace.Span] = {ROOT: request_span}
        request_span.set_attributes(family.root.attributes)
        for index, thread in family.threads.items():
            spans[index] = self._tracer.start_span(
                THREAD,
                context=trace.set_span_in_context(spans[thread.parent_index]),
                attributes=thread.attributes | {"gen_ai.request.id": external_id},
                start_time=thread.start_ns,
            )
            if key is not None:
                spans[index].set_attribute("forkjoin.thread.id", f"th_{key}_{index}")
        for index, branch in [(ROOT, family.root), *family.threads.items()]:
            for name, at_ns, attributes in branch.events:
                spans[index].add_event(name, attributes, at_ns)
        for index, thread in family.threads.items():
            if thread.end_ns is None:
                # The front end has found a stop string: the engine ends the threads a moment later.
                spans[index].set_attribute("forkjoin.thread.end_reason", "cancelled")
            spans[index].end(thread.end_ns or now_ns)
