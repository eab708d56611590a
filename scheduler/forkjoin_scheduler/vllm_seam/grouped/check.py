"""Two passes against one on the device itself, once at start: what is never met is not trusted.

Grouped attention has run on CPUs only, with a stand-in of FlashAttention. So a worker compares it with vLLM's
own attention, on random KV in a cache of the same layout, before it says that it can group. So it does with a
CUDA graph: one of a layer's attention is captured without groups, and replayed once its buffers have some.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from forkjoin_scheduler.vllm_seam.grouped.check_batch import Batch, Rows
from forkjoin_scheduler.vllm_seam.grouped.graph_passes import GraphPasses
from forkjoin_scheduler.vllm_seam.grouped.step import Step

#: Groups of three and two rows, a row alone, and one with five new tokens. What rows have after the tokens
#: that they share: whole blocks (16 tokens or more) and parts of some. Then the same with drafts.
_STEP = Rows(groups=(3, 2), shared=(4, 1), new=(1, 1, 1, 1, 1, 1, 5), own=(3, 17, 40, 3, 16, 70, 23))
_STEPS = (_STEP, replace(_STEP, new=(3, 3, 3, 3, 3, 1, 5)))
#: Rows that are alike, as graphs of whole steps have them, and the rows of the graph.
_ALIKE, _GRAPH_ROWS = (replace(_STEP, new=(1,) * 7), replace(_STEP, new=(3,) * 7)), 8
#: Values are about 0.5, of which 16 bits round off 0.002. A block unread is off by 0.1 and more.
_TOLERANCE = {torch.float32: 1e-4}


def largest_difference(builder: Any, layer: Any, cache: torch.Tensor, kv_cache_group: int) -> float:
    """How far the two passes are from one, in the attention of ``layer``, at most.

    ``cache``: of the layer, or laid out like it. It is not written.
    """
    batches = [Batch.of(rows, builder, layer, cache, kv_cache_group) for rows in _STEPS]
    return _largest([_difference(batch, builder, layer) for batch in batches])


def _difference(batch: Batch, builder: Any, layer: Any) -> float:
    def attend(**more: Any) -> torch.Tensor:
        metadata = builder.build(0, batch.common, **more)
        if builder.has_passes(metadata) != bool(more):
            raise RuntimeError("expected two passes for groups and one without, found otherwise")
        return batch.attend(layer, metadata, torch.zeros_like(batch.query)).float()

    return float((attend(groups=batch.groups) - attend()).abs().max())


def largest_graph_difference(
    builder: Any, layer: Any, cache: torch.Tensor, capture: Callable[[Callable[[], Any]], Any]
) -> float:
    """How far a replayed graph's attention of ``layer`` is from one pass, at most; NaN where it is none.

    ``builder`` has other ``for_graphs`` after it.

    ``capture``: the graph of what a function does. The graph is captured of rows that share nothing.
    """
    batches = [Batch.of(rows, builder, layer, cache, 0) for rows in _ALIKE]
    return _largest([_graph_difference(batch, builder, layer, capture) for batch in batches])


def _graph_difference(batch: Batch, builder: Any, layer: Any, capture: Callable[..., Any]) -> float:
    once = torch.zeros_like(batch.query)
    batch.attend(layer, builder.build(0, batch.common), once)
    padded, step = batch.padded(_GRAPH_ROWS), Step(is_captured=True)
    width = padded.common.block_table_tensor.shape[1]
    builder.for_graphs = GraphPasses(step, _GRAPH_ROWS, width, width * builder.block_size, builder.device)
    metadata = builder.build_for_cudagraph_capture(padded.common)
    output = torch.zeros_like(padded.query)
    graph = capture(lambda: padded.attend(layer, metadata, output))
    padded.take_over(batch)
    builder.build(0, padded.common, groups=batch.groups, for_graph=True)
    output.fill_(float("nan"))
    graph.replay()
    return float((output[: len(once)].float() - once.float()).abs().max())


def block_reason(builder: Any, layer: Any, cache: torch.Tensor, kv_cache_group: int) -> str | None:
    """Why this device is not to be trusted with grouped attention; None if it computes what it should."""
    return _reason(lambda: largest_difference(builder, layer, cache, kv_cache_group), cache.dtype)


def graph_reason(builder: Any, layer: Any, cache: torch.Tensor) -> str | None:
    """Why this device is not to be trusted with it in graphs of whole steps; None if it is.

    ``builder`` has no ``for_graphs`` after it.
    """
    try:
        return _reason(lambda: largest_graph_difference(builder, layer, cache, captured), cache.dtype)
    finally:
        builder.for_graphs = None


def captured(run: Callable[[], Any]) -> Any:
    """A CUDA graph of what ``run`` does, which has run once before, as vLLM does: kernels are loaded then."""
    run()
    torch.accelerator.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph


def _largest(differences: list[float]) -> float:
    """NaN if one is, which Python's own maximum may pass over."""
    return float(torch.tensor(differences).max())


def _reason(difference: Callable[[], float], dtype: torch.dtype) -> str | None:
    tolerance = _TOLERANCE.get(dtype, 0.02)
    try:
        off = difference()
    except Exception as error:  # whatever a kernel objects to: vLLM's own attention is there
        return f"it failed on this device ({type(error).__name__}: {error})"
    return None if off <= tolerance else f"it is off by {off:.3g} on this device, more than {tolerance:g}"
