"""An engine in the benchmark's own process, which sees its steps and events without a server between."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm import LLM as LLM  # the benchmarks' name for what start_engine gives
    from vllm import RequestOutput, SamplingParams

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


def start_engine(model: str, flags: Sequence[str] = (), **options: Any) -> LLM:
    """An engine in this process, set up as by ``forkjoin serve MODEL FLAGS``. ``options``: more of vLLM's."""
    served = _arguments([model, *flags])
    from vllm import LLM

    of_served = {
        name: getattr(served, name)
        for name in ("dtype", "scheduler_cls", "additional_config", "speculative_config")
    }
    return LLM(model=model, **(of_served | options))


def sampling(**options: Any) -> SamplingParams:
    """VLLM's sampling parameters."""
    from vllm import SamplingParams

    return SamplingParams(**options)


def step(llm: LLM) -> list[RequestOutput]:
    """One step of the engine, and what it gave."""
    from vllm import RequestOutput

    return [output for output in llm.llm_engine.step() if isinstance(output, RequestOutput)]


def _arguments(argv: list[str]) -> argparse.Namespace:
    """How ``forkjoin serve ARGV`` sets an engine up; a ``vllm.LLM`` made then has outputs of fork/join."""
    set_environment()
    from vllm.v1.engine import llm_engine

    from forkjoin_scheduler.vllm_seam.front_end.output import ForkJoinOutputProcessor
    from forkjoin_server.cli import serve_args

    # The plugin does this for the server's engine client, which the offline one is not.
    setattr(llm_engine, "OutputProcessor", ForkJoinOutputProcessor)  # noqa: B010
    return serve_args(argv)
