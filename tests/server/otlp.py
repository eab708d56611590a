"""Collectors of traces, in this process: OpenTelemetry's service over gRPC, and over HTTP."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps the spans that it is sent."""

    def __init__(self) -> None:
        self.spans: list[Span] = []

    def Export(self, request: Any, context: Any) -> ExportTraceServiceResponse:  # noqa: N802
        self.spans += [s for r in request.resource_spans for scope in r.scope_spans for s in scope.spans]
        return ExportTraceServiceResponse()

    def wait_for(self, is_wanted: Callable[[Span], bool], *, timeout_s: float = 60) -> Span:
        """The first span that ``is_wanted``, once it has come."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            if wanted := next(filter(is_wanted, list(self.spans)), None):
                return wanted
            time.sleep(0.05)
        raise TimeoutError(f"no such span came in {timeout_s} s; {len(self.spans)} others did")

    def children(self, parent: Span) -> list[Span]:
        return [s for s in self.spans if s.parent_span_id == parent.span_id]


@contextlib.contextmanager
def collector() -> Iterator[tuple[str, Collector]]:
    """The address of a running collector, and the collector."""
    servicer, server = Collector(), grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"http://127.0.0.1:{port}", servicer
    finally:
        server.stop(None).wait()


@contextlib.contextmanager
def http_collector() -> Iterator[tuple[str, Collector]]:
    """The same over HTTP: takes protobuf at its address, and nothing else anywhere."""
    kept = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if (self.path, self.headers["content-type"]) != ("/v1/traces", "application/x-protobuf"):
                self.send_error(400)
                return
            response = kept.Export(ExportTraceServiceRequest.FromString(body), None).SerializeToString()
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", str(len(response)))
            self.end_headers()
            self.wfile.write(response)

        def log_message(self, *args: Any) -> None:
            """Say nothing of what went well."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1/traces", kept
        finally:
            server.shutdown()


def attributes(of: Any) -> dict[str, Any]:
    """The attributes of a span or an event."""
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in of.attributes}
