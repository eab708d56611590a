"""How engines run in a process, and what GPUs run by default, on the CPU: async scheduling, and the V2 model
runner under Triton's interpreter.

All must be called before an engine is made, but for ``force_async`` before vLLM is imported.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any


def run_engines_alone() -> None:
    """Several engines in this process, each computing on one core.

    Threads of several engines that wait for each other, bound to the same cores, cost minutes.
    """
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    os.environ |= {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}


def force_async() -> None:
    """Switch async scheduling on, which vLLM's CPU platform switches off."""
    import torch
    from vllm.platforms.cpu import CpuPlatform

    original = CpuPlatform.check_and_update_config.__func__

    def patched(cls: Any, vllm_config: Any) -> None:
        original(cls, vllm_config)
        vllm_config.scheduler_config.async_scheduling = True

    CpuPlatform.check_and_update_config = classmethod(patched)

    class Stub:
        """Stands for a stream or an event: on a CPU everything has happened already."""

        device = torch.device("cpu")

        def __init__(self, *args: Any, **kwargs: Any) -> None: ...

        def __getattr__(self, name: str) -> Any:
            return lambda *args, **kwargs: None

    torch.cuda.Stream = torch.cuda.Event = torch.Event = Stub
    torch.cuda.current_stream = lambda *args: Stub()
    torch.cuda.stream = lambda *args: contextlib.nullcontext()


def use_v2_runner() -> None:
    """Let vLLM take Triton for usable, interpreted, before it is imported."""
    os.environ |= {"TRITON_INTERPRET": "1", "VLLM_USE_V2_MODEL_RUNNER": "1"}
    import triton.backends

    class Driver:
        @staticmethod
        def is_active() -> bool:
            return True

    triton.backends.backends["cpu"] = type("Backend", (), {"driver": Driver, "compiler": None})()

    from triton.runtime.interpreter import InterpreterBuilder

    store = InterpreterBuilder.create_masked_store

    def masked_store(self: Any, ptrs: Any, value: Any, mask: Any, cache_policy: Any) -> Any:
        # Of a condition on one number, as grammars' kernel has it, the interpreter makes an integer mask.
        mask.data = mask.data.astype(bool)
        return store(self, ptrs, value, mask, cache_policy)

    InterpreterBuilder.create_masked_store = masked_store
