"""Whether traces can be made as asked."""

from __future__ import annotations

import argparse
import os

from forkjoin_scheduler.errors import UsageError


def check_tracing(args: argparse.Namespace) -> None:
    """Raise UsageError if traces are asked for that can't be made.

    vLLM's own check of the packages finds them always (``is_tracing_available`` asks whether there
    are functions that could tell); without them it traces nothing. gRPC resolves no host with a user
    before it, and logs them at every try. Without statistics, an assertion in vLLM's ``do_tracing``
    ends the first request and all others with it.
    """
    from vllm.tracing import otel_import_error_traceback

    if args.otlp_traces_endpoint is None:
        return
    if otel_import_error_traceback is not None:
        raise UsageError(
            "--otlp-traces-endpoint: expected the OpenTelemetry packages, found none or not all of them: "
            "install vllm-forkjoin[otel]"
        )
    is_grpc = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc") == "grpc"
    if is_grpc and "@" in args.otlp_traces_endpoint:
        raise UsageError(
            "--otlp-traces-endpoint: expected no user or password in it, which gRPC takes for the host's: "
            "set OTEL_EXPORTER_OTLP_TRACES_HEADERS, or OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=http/protobuf"
        )
    if args.disable_log_stats:
        raise UsageError(
            "--otlp-traces-endpoint: expected no --disable-log-stats beside it, for spans are made of these: "
            "drop the one or the other"
        )
