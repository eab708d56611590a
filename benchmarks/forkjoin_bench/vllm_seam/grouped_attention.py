"""One layer's attention of a decoding step, in one pass and in two, timed on random KV."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from vllm.v1.attention.backends import flash_attn

from forkjoin_bench.grouped.estimate import Geometry, Load
from forkjoin_scheduler.errors import UsageError
from forkjoin_scheduler.tensors.two_passes import HostPlan, Pass, StepGroups, split

NUM_ROUNDS = 20


@dataclass(frozen=True)
class Measured:
    """Milliseconds of all layers: one pass over rows in random order, and side by side; two passes.

    ``off_by``: how far the two passes were from one, at most.
    """

    mixed_ms: float
    ordered_ms: float
    grouped_ms: float
    off_by: float


def has_gpu() -> bool:
    """Whether there is something to measure on."""
    return bool(torch.cuda.is_available())


def measure(
    load: Load,
    geometry: Geometry,
    device: str = "cuda",
    dtype: torch.dtype = torch.bfloat16,
    num_rounds: int = NUM_ROUNDS,
) -> Measured | None:
    """Time ``load``; None if its KV finds no room. Metadata are made once, as in a step for all layers."""
    table, num_blocks = _block_table(load, geometry.block_size)
    num_bytes = num_blocks * geometry.block_size * geometry.token_bytes
    if device == "cuda" and num_bytes > 0.8 * torch.cuda.mem_get_info()[0]:
        return None
    shape = (num_blocks, geometry.block_size, geometry.num_kv_heads, geometry.head_size)
    keys, values = (torch.empty(shape, device=device, dtype=dtype).normal_() for _ in range(2))
    num_rows, length = load.families * load.width, load.prefix + load.suffix
    query = torch.randn(num_rows, geometry.num_heads, geometry.head_size, device=device, dtype=dtype)
    starts = torch.arange(num_rows + 1, dtype=torch.int32, device=device)
    lengths = torch.full((num_rows,), length, dtype=torch.int32, device=device)
    rows = torch.from_numpy(table).to(device)
    mixed = rows[torch.from_numpy(np.random.default_rng(0).permutation(num_rows)).to(device)]
    version = flash_attn.get_flash_attn_version(head_size=geometry.head_size)
    if version is None:
        raise UsageError("expected a GPU that vLLM's FlashAttention runs on, found one without")

    def attend(part: Pass, queries: torch.Tensor, *, causal: bool) -> tuple[torch.Tensor, torch.Tensor]:
        found: tuple[torch.Tensor, torch.Tensor] = flash_attn.flash_attn_varlen_func(
            q=queries, k=keys, v=values, out=torch.empty_like(queries), cu_seqlens_q=part.starts,
            max_seqlen_q=part.max_queries, seqused_k=part.lengths, max_seqlen_k=part.max_length,
            softmax_scale=geometry.head_size**-0.5, causal=causal, block_table=part.block_table,
            return_softmax_lse=True, fa_version=version,
        )  # fmt: skip
        return found

    def once(of: torch.Tensor) -> torch.Tensor:
        return attend(Pass(starts, 1, lengths, length, of), query, causal=True)[0]

    shared = load.prefix - load.prefix % geometry.block_size
    groups = StepGroups(0, (load.width,) * load.families, (shared,) * load.families)
    plan = HostPlan.of(groups, np.full(num_rows, length, np.int32))
    numbers = torch.from_numpy(plan.numbers).to(device)
    passes = split(plan, numbers, starts, 1, lengths, rows, geometry.block_size)

    def twice() -> torch.Tensor:
        own, own_lse = attend(passes.own, query, causal=True)
        prefix, prefix_lse = attend(passes.shared, query, causal=False)
        flash_attn.merge_attn_states(own, prefix, prefix_lse.contiguous(), own, own_lse.contiguous())
        return own

    off_by = float((once(rows).float() - twice().float()).abs().max())
    times = [_milliseconds(do, device, num_rounds) for do in (lambda: once(mixed), lambda: once(rows), twice)]
    mixed_ms, ordered_ms, grouped_ms = (geometry.num_layers * ms for ms in times)
    return Measured(mixed_ms, ordered_ms, grouped_ms, off_by)


def _block_table(load: Load, block_size: int) -> tuple[Any, int]:
    """Blocks of each row, families one after the other; how many there are."""
    shared = load.prefix // block_size
    own = -(-(load.prefix + load.suffix) // block_size) - shared
    prefixes = np.arange(load.families * shared, dtype=np.int32).reshape(load.families, shared)
    rows = load.families * load.width
    others = load.families * shared + np.arange(rows * own, dtype=np.int32).reshape(rows, own)
    return np.concatenate([prefixes.repeat(load.width, axis=0), others], axis=1), int(others.max()) + 1


def _milliseconds(do: Callable[[], object], device: str, num_rounds: int) -> float:
    """The median of what ``do`` takes, on the device's own clock if it has one."""
    spent = []
    for i in range(num_rounds + 3):
        if device == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            do()
            end.record()
            end.synchronize()
            took = begin.elapsed_time(end)
        else:
            start = time.perf_counter()
            do()
            took = 1e3 * (time.perf_counter() - start)
        spent += [took] if i >= 3 else []
    return float(np.median(spent))
