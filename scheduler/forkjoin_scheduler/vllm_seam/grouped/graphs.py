"""CUDA graphs of whole steps with two passes in them, beside vLLM's own; steps with groups run them.

Each graph of a decoding step has a twin of the same size, whose attention is in two passes. A step without
groups runs vLLM's graph, a step with groups its twin. Where no twin fits it, what vLLM chose stays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from vllm.config import CUDAGraphMode
from vllm.logger import init_logger
from vllm.v1.worker.gpu.cudagraph_utils import (
    BatchExecutionDescriptor,
    CudaGraphManager,
    ModelCudaGraphManager,
)

from forkjoin_scheduler.vllm_seam.grouped.step import Step

logger = init_logger("vllm.forkjoin.engine")


@dataclass(frozen=True)
class GroupedDescriptor(BatchExecutionDescriptor):
    """Of a graph with two passes in it. It equals none of vLLM's, which are of another class."""

    @classmethod
    def twin_of(cls, desc: BatchExecutionDescriptor) -> GroupedDescriptor:
        """Of the graph of the same size."""
        return cls(**{field.name: getattr(desc, field.name) for field in fields(desc)})


def has_twin(desc: BatchExecutionDescriptor) -> bool:
    """Whether steps that this graph runs may have groups: two rows that are alike or more, no adapters."""
    return (
        desc.cg_mode == CUDAGraphMode.FULL
        and desc.uniform_token_count is not None
        and desc.num_tokens > desc.uniform_token_count
        and desc.num_active_loras == 0
        and desc.num_ubatches == 1
    )


class _CapturesTwins(CudaGraphManager):
    """Stands below vLLM's ``ModelCudaGraphManager``, which makes what is captured for each descriptor."""

    step: Step

    def capture(self, create_forward_fn: Callable[..., Any], *args: Any) -> None:
        free: list[int] = []

        def create(desc: BatchExecutionDescriptor, warmup: bool) -> Any:
            is_twin = isinstance(desc, GroupedDescriptor)
            if is_twin and not free:
                free.append(_free_bytes())
            self.step.is_captured = is_twin
            try:
                return create_forward_fn(desc, warmup)
            finally:
                self.step.is_captured = False

        super().capture(create, *args)
        if free:
            num = sum(isinstance(desc, GroupedDescriptor) for desc in self.graphs)
            taken = (free[0] - _free_bytes()) / 1e6
            logger.info("grouped attention: %d graphs of whole steps, %.0f MB", num, taken)


class GroupedGraphs(ModelCudaGraphManager, _CapturesTwins):
    """What a runner's manager of graphs is made, before they are captured."""

    def dispatch(self, *args: Any, **more: Any) -> BatchExecutionDescriptor:
        """As vLLM chooses; but for a step with groups the twin."""
        desc = super().dispatch(*args, **more)
        if not self.step.wants_graph or desc.cg_mode != CUDAGraphMode.FULL:
            return desc
        twin = GroupedDescriptor.twin_of(desc)
        return twin if twin in self.graphs else desc


def make_capturing(manager: Any, step: Step) -> bool:
    """Let a runner's manager capture twins, too; False where it captures no graph that may have one.

    They come after all of vLLM's, largest first, and so find most of their memory in vLLM's pool of graphs.
    """
    if type(manager) is not ModelCudaGraphManager:
        return False
    of_steps = manager._capture_descs.get(CUDAGraphMode.FULL, [])
    twins = [GroupedDescriptor.twin_of(desc) for desc in of_steps if has_twin(desc)]
    if twins:
        manager.__class__, manager.step = GroupedGraphs, step  # type: ignore[attr-defined]
        manager._capture_descs[CUDAGraphMode.FULL] = [*of_steps, *twins]
    return bool(twins)


def _free_bytes() -> int:
    torch.accelerator.synchronize()
    return int(torch.accelerator.get_memory_info()[0])
