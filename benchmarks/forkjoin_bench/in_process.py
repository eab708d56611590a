"""An engine in the benchmark's own process, which sees its steps and events without a server between."""

from __future__ import annotations

import argparse
import os

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "WARNING",
}


def set_environment() -> None:
    """Set what is not set already. vLLM reads it when it is imported."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def arguments_in_process(argv: list[str]) -> argparse.Namespace:
    """How ``forkjoin serve ARGV`` sets an engine up; a ``vllm.LLM`` made then has outputs of fork/join."""
    set_environment()
    from vllm.v1.engine import llm_engine

    from forkjoin_scheduler.vllm_seam.output import ForkJoinOutputProcessor
    from forkjoin_server.cli import serve_args

    # The plugin does this for the server's engine client, which the offline one is not.
    setattr(llm_engine, "OutputProcessor", ForkJoinOutputProcessor)  # noqa: B010
    return serve_args(argv)
