"""The engine that the benchmarks measure, in this process, and the facts of the host."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forkjoin_server.cli import EMBEDDED_MODEL, serve_args

if TYPE_CHECKING:
    from vllm import LLM

BUILD = Path(__file__).parents[1] / "build"


def start_engine(**options: Any) -> LLM:
    """An engine on the embedded model, with the scheduler and dialect that `forkjoin serve` gives it.

    ``options`` are vLLM's. Thread events reach ``forkjoin_scheduler.feed.FEEDS``, as in the server.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    # vLLM reads these when it is imported.
    from vllm import LLM
    from vllm.v1.engine import llm_engine

    from forkjoin_scheduler.vllm_seam.output import ForkJoinOutputProcessor

    # The plugin does this for the server's engine client, which the offline one is not.
    setattr(llm_engine, "OutputProcessor", ForkJoinOutputProcessor)  # noqa: B010
    served = serve_args([])
    return LLM(
        model=str(EMBEDDED_MODEL),
        scheduler_cls=served.scheduler_cls,
        additional_config=served.additional_config,
        **options,
    )


def host_facts() -> dict[str, Any]:
    """What a number measured here depends on."""
    import torch

    return {
        "cpu": _cpu_model(),
        "usable_cpus": len(os.sched_getaffinity(0)),
        "torch_threads": torch.get_num_threads(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "python": platform.python_version(),
        "vllm": _vllm_version(),
        "torch": version("torch"),
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _vllm_version() -> str:
    import vllm

    return str(vllm.__version__)
