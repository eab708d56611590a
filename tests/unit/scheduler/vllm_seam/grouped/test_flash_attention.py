"""Two passes against vLLM's one, over random batches, through vLLM's classes on a stand-in of its kernels."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import accumulate
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.v1.attention.backends import flash_attn

from forkjoin_scheduler.policy.shared_prefixes import SharedPrefixes
from forkjoin_scheduler.tensors.two_passes import StepGroups
from forkjoin_scheduler.vllm_seam.grouped.flash_attention import (
    _PASSES,
    GroupedMetadataBuilder,
)
from tests.engine import flash_attention as stand_in
from tests.tiers import Tier

HEADS, KV_HEADS, HEAD_SIZE = 4, 2, 16


@pytest.fixture(autouse=True)
def _on_a_cpu(monkeypatch):
    for name, function in stand_in.functions().items():
        monkeypatch.setattr(flash_attn, name, function, raising=False)


@dataclass
class Batch:
    """Rows whose first ones share blocks, as a step has them."""

    blocks: list[list[int]]
    lengths: list[int]
    new: list[int]
    groups: StepGroups
    block_size: int

    @classmethod
    def random(cls, chance: random.Random) -> Batch:
        """Rows on trees of blocks with partial tails, some of one prompt, with drafts or none; and prompts."""
        size, queries = chance.choice([16, 32]), chance.choice([1, 1, 3])
        fresh = iter(range(1, 10_000))
        rows: dict[int, tuple[list[int], int, int]] = {}
        for i in range(chance.randint(2, 12)):
            like = chance.choice(list(rows.values()))[0] if rows and chance.random() < 0.8 else []
            shared = like[: chance.randint(0, len(like))]
            length = len(shared) * size + chance.randint(queries, 3 * size)
            new = chance.randint(2, size) if chance.random() < 0.2 else queries
            new = min(new, length - len(shared) * size)
            own = [next(fresh) for _ in range(-(-length // size) - len(shared))]
            rows[i] = ([*shared, *own], length, new)
        tree = SharedPrefixes()
        for i, (blocks, length, new) in rows.items():
            if new == queries:
                tree.add(str(i), blocks[: (length - new) // size])
        found = tree.groups()
        order = [int(row) for group in found for row in group.rows]
        order += [i for i in sorted(rows, key=lambda i: rows[i][2]) if i not in order]
        sizes, tokens = (len(g.rows) for g in found), (g.num_blocks * size for g in found)
        groups = StepGroups(0, tuple(sizes), tuple(tokens), queries)
        blocks, lengths, new = (list(x) for x in zip(*(rows[i] for i in order), strict=True))
        return cls(blocks, lengths, new, groups, size)

    def common(self) -> Any:
        table = torch.zeros(len(self.blocks), max(map(len, self.blocks)) + 1, dtype=torch.int32)
        for row, blocks in zip(table, self.blocks, strict=True):
            row[: len(blocks)] = torch.tensor(blocks)
        lengths = torch.tensor(self.lengths, dtype=torch.int32)
        return SimpleNamespace(
            num_reqs=len(self.blocks),
            query_start_loc=torch.tensor([0, *accumulate(self.new)], dtype=torch.int32),
            max_query_len=max(self.new),
            seq_lens=lengths,
            seq_lens_cpu_upper_bound=lengths,
            block_table_tensor=table,
        )


def _metadata(batch: Batch, *, is_grouped: bool) -> Any:
    common = batch.common()
    metadata = flash_attn.FlashAttentionMetadata(
        num_actual_tokens=sum(batch.new),
        max_query_len=common.max_query_len,
        query_start_loc=common.query_start_loc,
        max_seq_len=max(batch.lengths),
        seq_lens=common.seq_lens,
        block_table=common.block_table_tensor,
        slot_mapping=torch.zeros(0),
    )
    if is_grouped:
        builder = GroupedMetadataBuilder.__new__(GroupedMetadataBuilder)
        vars(builder).update(block_size=batch.block_size, device=torch.device("cpu"), aot_schedule=False)
        passes = builder._two_passes(batch.groups, common)
        setattr(metadata, _PASSES, builder._schedule(passes, 0, fast_build=False))
    return metadata


def _attend(batch: Batch, cache: torch.Tensor, query: torch.Tensor, *, is_grouped: bool) -> torch.Tensor:
    scale = torch.ones(())
    layer: Any = SimpleNamespace(_q_scale=scale, _k_scale=scale, _v_scale=scale)
    new, output = query[:, :KV_HEADS], torch.zeros_like(query)
    metadata = _metadata(batch, is_grouped=is_grouped)
    return stand_in.grouped_attention(HEADS, KV_HEADS, HEAD_SIZE).forward(
        layer, query, new, new, cache, metadata, output
    )


def _inputs(batch: Batch, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    num_blocks = 1 + max(max(blocks) for blocks in batch.blocks)
    cache = torch.randn(num_blocks, KV_HEADS, batch.block_size, 2 * HEAD_SIZE)
    return cache, 2 * torch.randn(sum(batch.new) + 3, HEADS, HEAD_SIZE)  # padded, as for a graph


def test_two_passes_are_one_pass(tier):
    num_grouped = 0
    for seed in range({Tier.FIRST: 60, Tier.CI: 100, Tier.ALL: 800}[tier]):
        batch = Batch.random(random.Random(seed))
        if not batch.groups.num_rows:
            continue
        num_grouped += 1
        cache, query = _inputs(batch, seed)
        once = _attend(batch, cache, query, is_grouped=False)
        twice = _attend(batch, cache, query, is_grouped=True)
        torch.testing.assert_close(twice, once, atol=1e-5, rtol=0)
    assert num_grouped > 40


def test_a_shared_block_that_is_left_unread_is_seen(monkeypatch):
    """The control: what compares the passes above would find one block too few."""

    def short(**more: Any) -> Any:
        if not more["causal"]:
            more["seqused_k"] = more["seqused_k"] - 16
        return stand_in.attend(**more)

    batch = Batch([[1, 2, 3], [1, 2, 4]], [40, 45], [1, 1], StepGroups(0, (2,), (32,)), 16)
    cache, query = _inputs(batch, 0)
    once = _attend(batch, cache, query, is_grouped=False)
    monkeypatch.setattr(flash_attn, "flash_attn_varlen_func", short)
    assert (_attend(batch, cache, query, is_grouped=True) - once).abs().max() > 0.05


def test_keys_of_a_group_are_read_once(monkeypatch):
    read: list[int] = []

    def counting(**more: Any) -> Any:
        read.append(int(more["seqused_k"].sum()))
        return stand_in.attend(**more)

    monkeypatch.setattr(flash_attn, "flash_attn_varlen_func", counting)
    batch = Batch([[1, 2, 3], [1, 2, 4], [1, 2, 5]], [40, 45, 33], [1, 1, 1], StepGroups(0, (3,), (32,)), 16)
    cache, query = _inputs(batch, 0)
    _attend(batch, cache, query, is_grouped=False)
    _attend(batch, cache, query, is_grouped=True)
    assert read == [118, 118 - 96, 32]
    assert batch.groups.saved_tokens == 118 - (118 - 96 + 32)
