"""Spans of threads, beneath one that is made as vLLM makes it of a request that ends."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from forkjoin_scheduler.families.thread_end import ThreadEnd
from forkjoin_scheduler.publish.events import Forked, Joined, NewThread, Progress, ThreadEnded
from forkjoin_scheduler.vllm_seam.front_end.tracing import REQUEST, THREAD, ThreadTracer
from forkjoin_scheduler.vllm_seam.front_end.wire import EventBatch

KEY = "fj" + "0" * 32
NOW = time.time_ns()
COUNTS = {"num_threads": 3, "critical_path_tokens": 5, "total_tokens": 9}
#: A request forks into two threads; the first forks into a third, joins; the second never ends.
TOLD = [
    (-9, Forked(parent_index=-1, shared_tokens=7, threads=[NewThread(index=0, number="1", title="a"), NewThread(index=1, number="2", title="b")])),
    (-8, Forked(parent_index=0, shared_tokens=8, threads=[NewThread(index=2, number="1.1", title="c")])),
    (-7, ThreadEnded(index=2, reason=ThreadEnd.STOP, num_tokens=4)),
    (-6, Joined(parent_index=0, prefilled_tokens=1)),
    (-5, ThreadEnded(index=0, reason=ThreadEnd.EOS, num_tokens=6)),
    (-4, Progress(family="r", surplus_tokens=0, **COUNTS)),
]  # fmt: skip


@pytest.fixture
def make():
    """A tracer that has heard of the request ``r``, and what makes that request's span."""
    exporter = InMemorySpanExporter()

    def make(**options):
        provider = TracerProvider(shutdown_on_exit=False, **options)
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        tracer = ThreadTracer(provider)
        for at, event in TOLD:
            tracer.hear(EventBatch("r", [event], NOW + at, 0))

        def end(request_id="r"):
            with tracer.ending(request_id, f"chatcmpl-{KEY}"):
                provider.get_tracer("vllm").start_span(REQUEST, start_time=NOW - 10).end()
            return exporter.get_finished_spans()

        return tracer, end

    return make


def test_threads_are_children_of_whoever_forked_them_and_lie_within_it(make):
    _, end = make()
    spans = {s.attributes.get("forkjoin.thread.index", "request"): s for s in end()}
    assert {i: s.name for i, s in spans.items()} == {"request": REQUEST, 0: THREAD, 1: THREAD, 2: THREAD}
    for child, parent in [(0, "request"), (1, "request"), (2, 0)]:
        assert spans[child].parent.span_id == spans[parent].context.span_id
        assert spans[child].context.trace_id == spans["request"].context.trace_id
        assert spans[parent].start_time <= spans[child].start_time
        assert spans[child].end_time <= spans[parent].end_time
    assert (spans[2].start_time, spans[2].end_time) == (NOW - 8, NOW - 7)
    assert [e.name for e in spans["request"].events] == ["forkjoin.fork"]
    assert [(e.name, e.timestamp) for e in spans[0].events] == [
        ("forkjoin.fork", NOW - 8),
        ("forkjoin.join", NOW - 6),
    ]
    assert spans["request"].attributes["forkjoin.num_threads"] == 3
    assert spans[0].attributes["forkjoin.thread.id"] == f"th_{KEY}_0"


def test_a_thread_that_still_runs_when_the_request_ends_is_cancelled_then(make):
    _, end = make()
    (open_one,) = (s for s in end() if s.attributes.get("forkjoin.thread.index") == 1)
    assert open_one.attributes["forkjoin.thread.end_reason"] == "cancelled"
    assert NOW <= open_one.end_time <= time.time_ns()


def test_a_request_that_did_not_fork_gets_nothing(make):
    _, end = make()
    (span,) = end("another")
    assert (span.name, dict(span.attributes), span.events) == (REQUEST, {}, ())


def test_an_aborted_request_leaves_nothing_behind(make):
    tracer, end = make()
    tracer.forget("r")
    assert tracer._families == {}
    assert [s.name for s in end()] == [REQUEST]


def test_threads_of_a_request_that_the_sampler_drops_have_no_spans(make):
    _, end = make(sampler=ALWAYS_OFF)
    assert end() == ()


def test_nothing_is_imported_or_kept_where_tracing_is_off():
    code = (
        "import sys; from forkjoin_scheduler.vllm_seam.front_end.output import ForkJoinOutputProcessor as P;"
        "p = P(None, log_stats=False); assert p._tracer is None;"
        "assert not {'forkjoin_scheduler.publish.spans', 'forkjoin_scheduler.vllm_seam.front_end.tracing'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
