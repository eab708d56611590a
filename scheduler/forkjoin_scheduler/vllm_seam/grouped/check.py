"""Two passes against one on the device itself, once at start: what is never met is not trusted.

Grouped attention has run on CPUs only, with a stand-in of FlashAttention. So a worker compares it with vLLM's
own attention, on random KV in a cache of the same layout, before it says that it can group.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from vllm.v1.attention.backend import CommonAttentionMetadata

from forkjoin_scheduler.tensors.two_passes import StepGroups

#: Groups of three and two rows, a row alone, and one with five new tokens; blocks that each group shares.
_GROUPS, _SHARED = (3, 2), (4, 1)
_NEW = (1, 1, 1, 1, 1, 1, 5)
#: Tokens of each row after those that it shares: whole blocks (16 tokens or more) and parts of some.
_OWN = (1, 17, 40, 3, 16, 70, 23)
#: Values are about 0.5, of which 16 bits round off 0.002. A block unread is off by 0.1 and more.
_TOLERANCE = {torch.float32: 1e-4}


def largest_difference(builder: Any, layer: Any, cache: torch.Tensor, kv_cache_group: int) -> float:
    """How far the two passes are from one, in the attention of ``layer``, at most.

    ``cache``: of the layer, or laid out like it. It is not written.
    """
    impl, device = layer.impl, builder.device
    chance = torch.Generator().manual_seed(0)

    def random(*shape: int, size: float) -> torch.Tensor:
        return (torch.randn(*shape, generator=chance) * size).to(device=device, dtype=cache.dtype)

    common, groups, num_blocks = _batch(builder.block_size, kv_cache_group, device)
    own_cache = torch.empty_like(cache[:num_blocks])  # strides alike
    own_cache.copy_(random(num_blocks, *cache.shape[1:], size=0.5))
    query = random(sum(_NEW), impl.num_heads, impl.head_size, size=4)
    new = random(sum(_NEW), impl.num_kv_heads, impl.head_size, size=0.5)

    def attend(**more: Any) -> torch.Tensor:
        metadata = builder.build(0, common, **more)
        if builder.has_passes(metadata) != bool(more):
            raise RuntimeError("expected two passes for groups and one without, found otherwise")
        return impl.forward(layer, query, new, new, own_cache, metadata, torch.zeros_like(query)).float()

    return float((attend(groups=groups) - attend()).abs().max())


def block_reason(builder: Any, layer: Any, cache: torch.Tensor, kv_cache_group: int) -> str | None:
    """Why this device is not to be trusted with grouped attention; None if it computes what it should."""
    tolerance = _TOLERANCE.get(cache.dtype, 0.02)
    try:
        off = largest_difference(builder, layer, cache, kv_cache_group)
    except Exception as error:  # whatever a kernel objects to: vLLM's own attention is there
        return f"it failed on this device ({type(error).__name__}: {error})"
    return None if off <= tolerance else f"it is off by {off:.3g} on this device, more than {tolerance:g}"


def _batch(
    block_size: int, kv_cache_group: int, device: torch.device
) -> tuple[CommonAttentionMetadata, StepGroups, int]:
    """Rows in groups, in blocks that follow no order; how many blocks there are."""
    shared = [num for rows, num in zip(_GROUPS, _SHARED, strict=True) for _ in range(rows)]
    shared += [0] * (len(_NEW) - len(shared))
    lengths = [num * block_size + own for num, own in zip(shared, _OWN, strict=True)]
    num_blocks = 1 + sum(_SHARED) + sum(-(-own // block_size) for own in _OWN)
    free = iter(np.random.default_rng(0).permutation(np.arange(1, num_blocks)).tolist())
    prefixes = [[next(free) for _ in range(num)] for num in _SHARED]
    of_rows = [p for p, rows in zip(prefixes, _GROUPS, strict=True) for _ in range(rows)]
    of_rows += [[]] * (len(_NEW) - len(of_rows))
    table = np.zeros((len(_NEW), max(-(-n // block_size) for n in lengths)), np.int32)
    for row, (prefix, own) in enumerate(zip(of_rows, _OWN, strict=True)):
        blocks = [*prefix, *(next(free) for _ in range(-(-own // block_size)))]
        table[row, : len(blocks)] = blocks
    starts = torch.tensor([0, *np.cumsum(_NEW).tolist()], dtype=torch.int32)
    on_host = torch.tensor(lengths, dtype=torch.int32)
    common = CommonAttentionMetadata(
        query_start_loc=starts.to(device),
        query_start_loc_cpu=starts,
        seq_lens=on_host.to(device),
        seq_lens_cpu_upper_bound=on_host,
        num_reqs=len(_NEW),
        num_actual_tokens=sum(_NEW),
        max_query_len=max(_NEW),
        max_seq_len=max(lengths),
        block_table_tensor=torch.from_numpy(table).to(device),
        slot_mapping=torch.zeros(sum(_NEW), dtype=torch.int64, device=device),
    )
    groups = StepGroups(kv_cache_group, _GROUPS, tuple(num * block_size for num in _SHARED))
    return common, groups, num_blocks
