"""CUDA graphs on the CPU: vLLM's V2 runner captures and replays recordings of a model (``recorded_graph.py``).

Graphs in pieces are the model itself, run by Python: between pieces that is what they are.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from tests.engine import flash_attention
from tests.engine.recorded_graph import RecordedGraph, capture_into, captured

#: Rows of the graphs of whole steps.
SIZES = [1, 2, 4, 8, 16]


def emulate() -> None:
    """Let engines of this process have graphs, in pieces and of whole decoding steps. After ``use_flash_attention``."""
    from vllm.config import CUDAGraphMode, VllmConfig
    from vllm.model_executor.layers.attention import attention
    from vllm.platforms.cpu import CpuPlatform
    from vllm.v1.attention.backends import flash_attn
    from vllm.v1.worker.gpu import cudagraph_utils, model_runner

    from forkjoin_scheduler.vllm_seam.grouped import check

    original = CpuPlatform.check_and_update_config.__func__

    def with_graphs(cls: Any, vllm_config: Any) -> None:
        original(cls, vllm_config)
        config = vllm_config.compilation_config
        config.cudagraph_mode = CUDAGraphMode.FULL_AND_PIECEWISE
        config.cudagraph_capture_sizes, config.max_cudagraph_capture_size = SIZES, SIZES[-1]

    CpuPlatform.check_and_update_config = classmethod(with_graphs)
    VllmConfig._normalize_piecewise_cudagraph_mode = lambda *_, **__: None
    CpuPlatform.get_global_graph_pool = CpuPlatform.graph_pool_handle = lambda *_: None
    check.captured = captured
    torch.cuda.CUDAGraph, torch.cuda.graph = RecordedGraph, capture_into
    torch.accelerator.empty_cache = torch.accelerator.synchronize = lambda *_: None
    torch.accelerator.get_memory_info = lambda *_: (0, 0)
    for name in ("graph_capture", "capture_pool"):
        setattr(cudagraph_utils, name, lambda *_, **__: contextlib.nullcontext())
    cudagraph_utils.current_stream = model_runner.lock_workspace = lambda: None
    cudagraph_utils.has_compiled_submodule = model_runner.has_compiled_submodule = lambda model: True
    for name in ("flash_attn_varlen_func", "reshape_and_cache_flash"):
        setattr(flash_attn, name, RecordedGraph.kernel(flash_attention.kernels_of_graphs()[name]))
    for name in ("unified_attention_with_output", "unified_kv_cache_update"):
        RecordedGraph.opened[f"vllm::{name}"] = getattr(attention, name)


def capture(engine: Any) -> Any:
    """Capture the graphs of ``engine``, as a worker on a GPU does at its start; returns their manager."""
    worker = engine.core.model_executor.driver_worker
    runner = getattr(worker, "worker", worker).model_runner
    runner.capture_model()
    return runner.cudagraph_manager
