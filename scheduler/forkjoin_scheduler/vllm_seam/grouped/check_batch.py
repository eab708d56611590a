"""A batch of random KV and queries for ``check.py``, laid out as an engine's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from vllm.v1.attention.backend import CommonAttentionMetadata

from forkjoin_scheduler.tensors.two_passes import StepGroups


@dataclass(frozen=True)
class Rows:
    """The rows of a batch, those in groups first."""

    #: Of each group: rows, and blocks that they share.
    groups: tuple[int, ...]
    shared: tuple[int, ...]
    #: Of each row: new tokens, and tokens after those that it shares, the new ones included.
    new: tuple[int, ...]
    own: tuple[int, ...]


@dataclass(frozen=True)
class Batch:
    """What attention reads: queries and new KV [tokens, heads, head size], and a cache of blocks."""

    common: CommonAttentionMetadata
    groups: StepGroups
    cache: torch.Tensor
    query: torch.Tensor
    new: torch.Tensor

    @classmethod
    def of(cls, rows: Rows, builder: Any, layer: Any, cache: torch.Tensor, kv_cache_group: int) -> Batch:
        """Random values for ``layer``, in a cache laid out like ``cache``, which is only looked at."""
        impl, device, size = layer.impl, builder.device, builder.block_size
        chance = torch.Generator().manual_seed(0)

        def random(*shape: int, spread: float) -> torch.Tensor:
            return (torch.randn(*shape, generator=chance) * spread).to(device=device, dtype=cache.dtype)

        table, lengths, num_blocks = _blocks(rows, size)
        own_cache = torch.empty_like(cache[:num_blocks])  # strides alike
        own_cache.copy_(random(num_blocks, *cache.shape[1:], spread=0.5))
        query = random(sum(rows.new), impl.num_heads, impl.head_size, spread=4)
        new = random(sum(rows.new), impl.num_kv_heads, impl.head_size, spread=0.5)
        tokens = tuple(num * size for num in rows.shared)
        groups = StepGroups(kv_cache_group, rows.groups, tokens, num_queries=rows.new[0])
        return cls(_common(rows.new, lengths, table, device), groups, own_cache, query, new)

    def attend(self, layer: Any, metadata: Any, output: torch.Tensor) -> torch.Tensor:
        """Attention of ``layer`` over the batch, into ``output``."""
        attended: torch.Tensor = layer.impl.forward(
            layer, self.query, self.new, self.new, self.cache, metadata, output
        )
        return attended

    def padded(self, num_rows: int) -> Batch:
        """In memory of its own, as many rows like these, without contexts: as graphs are captured."""
        common, num = self.common, self.groups.num_queries
        table = np.zeros((num_rows, common.block_table_tensor.shape[1]), np.int32)
        return replace(
            self,
            common=_common((num,) * num_rows, [num] * num_rows, table, self.query.device),
            query=self.query.new_zeros(num_rows * num, *self.query.shape[1:]),
            new=self.new.new_zeros(num_rows * num, *self.new.shape[1:]),
        )

    def take_over(self, batch: Batch) -> None:
        """Put a batch of fewer such rows into this one's memory, padded as vLLM pads."""
        mine, its, num = self.common, batch.common, batch.common.num_reqs
        self.query[: len(batch.query)], self.new[: len(batch.new)] = batch.query, batch.new
        mine.query_start_loc[: num + 1] = its.query_start_loc
        mine.query_start_loc[num + 1 :] = len(batch.query)
        mine.block_table_tensor[:num] = its.block_table_tensor
        bounds, its_bounds = mine.seq_lens_cpu_upper_bound, its.seq_lens_cpu_upper_bound
        assert bounds is not None
        assert its_bounds is not None
        for lengths, its_lengths in ((mine.seq_lens, its.seq_lens), (bounds, its_bounds)):
            lengths[:num] = its_lengths
            lengths[num:] = 0


def _blocks(rows: Rows, block_size: int) -> tuple[npt.NDArray[np.int32], list[int], int]:
    """Block table and lengths of rows, in blocks that follow no order; how many blocks there are."""
    shared = [num for n, num in zip(rows.groups, rows.shared, strict=True) for _ in range(n)]
    shared += [0] * (len(rows.new) - len(shared))
    lengths = [num * block_size + own for num, own in zip(shared, rows.own, strict=True)]
    num_blocks = 1 + sum(rows.shared) + sum(-(-own // block_size) for own in rows.own)
    free = iter(np.random.default_rng(0).permutation(np.arange(1, num_blocks)).tolist())
    prefixes = [[next(free) for _ in range(num)] for num in rows.shared]
    of_rows = [p for p, n in zip(prefixes, rows.groups, strict=True) for _ in range(n)]
    of_rows += [[]] * (len(rows.new) - len(of_rows))
    table = np.zeros((len(rows.new), max(-(-n // block_size) for n in lengths)), np.int32)
    for row, (prefix, own) in enumerate(zip(of_rows, rows.own, strict=True)):
        blocks = [*prefix, *(next(free) for _ in range(-(-own // block_size)))]
        table[row, : len(blocks)] = blocks
    return table, lengths, num_blocks


def _common(
    new: tuple[int, ...], lengths: list[int], table: npt.NDArray[np.int32], device: torch.device
) -> CommonAttentionMetadata:
    starts = torch.tensor([0, *np.cumsum(new).tolist()], dtype=torch.int32)
    on_host = torch.tensor(lengths, dtype=torch.int32)
    return CommonAttentionMetadata(
        query_start_loc=starts.to(device, copy=True),
        query_start_loc_cpu=starts,
        seq_lens=on_host.to(device, copy=True),
        seq_lens_cpu_upper_bound=on_host,
        num_reqs=len(new),
        num_actual_tokens=sum(new),
        max_query_len=max(new),
        max_seq_len=max(lengths),
        block_table_tensor=torch.from_numpy(table).to(device),
        slot_mapping=torch.zeros(sum(new), dtype=torch.int64, device=device),
    )
