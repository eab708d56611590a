"""One cell of {V1, V2 runner} x {sync, async scheduling}, in a process of its own.

``python -m tests.engine.matrix_case v2 async 1`` prints a JSON line (1: tensor parallel size). What GPUs run by default (V2,
async) runs here on the CPU: V2 under Triton's interpreter, async with CUDA's streams stubbed.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from typing import Any


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


def _runner_name(worker: Any) -> str:
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner as V2Runner

    return "v2" if isinstance(worker.model_runner, V2Runner) else "v1"


def main(runner: str, mode: str, tensor_parallel_size: int) -> dict[str, Any]:
    """Run a few worksheets and aborts; say whether all was exact and all came back."""
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    if runner == "v2":
        use_v2_runner()
    if mode == "async":
        force_async()
    from tests.engine.harness import Engine

    engine = Engine(
        max_num_seqs=16,
        max_num_batched_tokens=512,
        max_model_len=1024,
        logits_processors=None,
        tensor_parallel_size=tensor_parallel_size,
    )
    executor = engine.core.engine_core.engine_core.model_executor
    (runner_name,) = set(executor.collective_rpc(_runner_name))
    texts = ["a=48*36, b=57*18", "a=12*34, b=7*8, c=56*78"] + ["a=482*731, b=64*28, c=91*73"] * (
        runner == "v1"
    )
    prompts = [engine.prompt(t) for t in texts]
    engine.steps.clear()
    answers = engine.run(prompts, engine.params(max_tokens=900))
    steps = list(engine.steps)
    exact = [a.token_ids for a in answers] == engine.reference(prompts)
    request_id = engine.add(prompts[0], engine.params())
    engine.step_until(lambda: any("#" in i for i in engine.scheduler.requests))
    engine.core.abort_request([request_id])
    engine.drain()
    return {
        "runner": runner_name,
        "ranks": executor.parallel_config.world_size,
        "async": engine.core.vllm_config.scheduler_config.async_scheduling,
        "num_threads": len({i for s in steps for i in s if "#" in i}),
        "exact": exact,
        "returned": engine.snapshot() == engine.baseline,
        "first_thread_step_tokens": next(s[i] for s in steps for i in s if "#" in i),
    }


if __name__ == "__main__":
    print("CASE " + json.dumps(main(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
