"""Graphs of whole steps with two passes: captured once, replayed with other groups, against one pass.

A graph is a recording of what a capture called (``tests/engine/recorded_graph.py``): a value that Python had
during the capture is in it for good. Attention is vLLM's classes on a stand-in of their kernels.
"""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.attention.backends import flash_attn

from forkjoin_scheduler.policy.shared_prefixes import SharedPrefixes
from forkjoin_scheduler.tensors.fixed_passes import FixedPasses
from forkjoin_scheduler.tensors.two_passes import StepGroups
from forkjoin_scheduler.vllm_seam.grouped.flash_attention import GroupedMetadataBuilder
from forkjoin_scheduler.vllm_seam.grouped.graph_passes import GraphPasses
from forkjoin_scheduler.vllm_seam.grouped.step import Step
from tests.engine import flash_attention as stand_in
from tests.engine.recorded_graph import RecordedGraph, captured
from tests.tiers import Tier

HEADS, KV_HEADS, HEAD_SIZE, BLOCK = 4, 2, 16, 16
MAX_BLOCKS, NUM_BLOCKS = 24, 160


@pytest.fixture(autouse=True)
def _on_a_cpu(monkeypatch):
    for name, function in stand_in.kernels_of_graphs().items():
        monkeypatch.setattr(flash_attn, name, RecordedGraph.kernel(function), raising=False)
    monkeypatch.setattr(flash_attn, "get_scheduler_metadata", _schedule, raising=False)


def _schedule(**more: Any) -> torch.Tensor:
    """What the passes are scheduled for, in numbers: the kernel below wants to have been told the truth."""
    numbers = [more["max_seqlen_q"], more["max_seqlen_k"], *more["cache_seqlens"].tolist()]
    return torch.tensor(numbers, dtype=torch.int32)


class Memory:
    """Of a graph of ``num_rows`` with as many new tokens each, as vLLM's runner has it: each step writes it."""

    def __init__(self, num_rows: int, num_queries: int = 1) -> None:
        self.num_rows, self.num_queries = num_rows, num_queries
        self.starts = torch.zeros(num_rows + 1, dtype=torch.int32)
        self.lengths = torch.zeros(num_rows, dtype=torch.int32)
        self.table = torch.zeros(num_rows, MAX_BLOCKS, dtype=torch.int32)
        self.cache = torch.zeros(NUM_BLOCKS, KV_HEADS, BLOCK, 2 * HEAD_SIZE)
        self.query = torch.zeros(num_rows * num_queries, HEADS, HEAD_SIZE)
        self.output = torch.zeros_like(self.query)

    def write(self, rows: list[list[int]], lengths: list[int]) -> CommonAttentionMetadata:
        """Blocks and lengths of rows; what vLLM then knows of the step."""
        self.table[: len(rows)] = 2**30  # of the last step; never read
        for row, blocks in zip(self.table, rows, strict=False):
            row[: len(blocks)] = torch.tensor(blocks)
        padding = self.num_rows - len(rows)
        bounds = torch.tensor(lengths + [0] * padding, dtype=torch.int32)
        self.lengths.copy_(bounds)
        ends = torch.tensor([*range(len(rows) + 1)] + [len(rows)] * padding)
        self.starts.copy_(ends * self.num_queries)
        return CommonAttentionMetadata(
            query_start_loc=self.starts,
            query_start_loc_cpu=self.starts.clone(),
            seq_lens=self.lengths,
            seq_lens_cpu_upper_bound=bounds,
            num_reqs=self.num_rows,
            num_actual_tokens=self.num_rows * self.num_queries,
            max_query_len=self.num_queries,
            max_seq_len=max(lengths),
            block_table_tensor=self.table,
            slot_mapping=torch.zeros(len(self.query), dtype=torch.int64),
        )

    def attend(self, metadata: Any) -> torch.Tensor:
        new = self.query[:, :KV_HEADS]
        return stand_in.grouped_attention(HEADS, KV_HEADS, HEAD_SIZE).forward(
            LAYER, self.query, new, new, self.cache, metadata, self.output
        )


LAYER: Any = SimpleNamespace(_q_scale=torch.ones(()), _k_scale=torch.ones(()), _v_scale=torch.ones(()))


def _builder(max_rows: int) -> GroupedMetadataBuilder:
    builder = GroupedMetadataBuilder.__new__(GroupedMetadataBuilder)
    device = torch.device("cpu")
    vars(builder).update(
        block_size=BLOCK, device=device, aot_schedule=True, aot_sliding_window=(-1, -1),
        use_full_cuda_graph=True, max_cudagraph_size=max_rows, max_num_splits=32, dcp_world_size=1,
        rswa_window=None, mm_prefix_query_ranges_np=None, num_heads_q=HEADS, num_heads_kv=KV_HEADS,
        headdim=HEAD_SIZE, kv_cache_dtype=torch.float32, cache_config=SimpleNamespace(cache_dtype="auto"),
        scheduler_metadata=torch.zeros(1 + 16 * max_rows, dtype=torch.int32),
        for_graphs=GraphPasses(Step(), max_rows, MAX_BLOCKS, MAX_BLOCKS * BLOCK, device),
    )  # fmt: skip
    return builder


def _decoding(
    chance: random.Random, most: int, num_queries: int
) -> tuple[list[list[int]], list[int], StepGroups]:
    """Blocks and lengths of up to ``most`` rows, those in groups first, and the groups."""
    fresh, rows = iter(chance.sample(range(1, NUM_BLOCKS), NUM_BLOCKS - 1)), []
    likely = chance.choice([0, 0.5, 0.8, 1])
    for _ in range(chance.randint(1, most)):
        like = chance.choice(rows)[0] if rows and chance.random() < likely else []
        shared = like[: chance.randint(0, min(len(like), MAX_BLOCKS - 4))]
        length = len(shared) * BLOCK + chance.randint(num_queries, 4 * BLOCK)
        own = [next(fresh) for _ in range(-(-length // BLOCK) - len(shared))]
        rows.append(([*shared, *own], length))
    tree = SharedPrefixes()
    for i, (blocks, length) in enumerate(rows):
        tree.add(str(i), blocks[: (length - num_queries) // BLOCK])
    found = tree.groups()
    order = [int(row) for group in found for row in group.rows]
    rows = [rows[i] for i in order + [i for i in range(len(rows)) if i not in order]]
    sizes, tokens = (len(g.rows) for g in found), (g.num_blocks * BLOCK for g in found)
    groups = StepGroups(0, tuple(sizes), tuple(tokens), num_queries)
    return [blocks for blocks, _ in rows], [length for _, length in rows], groups


def _capture(builder: GroupedMetadataBuilder, memory: Memory) -> RecordedGraph:
    """As vLLM's manager does: metadata outside the graph, of rows without a context."""
    common = memory.write([[0]] * memory.num_rows, [memory.num_queries] * memory.num_rows)
    builder.for_graphs.step.is_captured = True
    metadata = builder.build_for_cudagraph_capture(common)
    builder.for_graphs.step.is_captured = False
    return captured(lambda: memory.attend(metadata))


def _replay_is_one_pass(
    graph: RecordedGraph, builder: GroupedMetadataBuilder, memory: Memory, seed: int
) -> int:
    """Assert that the graph attends to a random batch as one pass does; how many groups there were."""
    rows, lengths, groups = _decoding(random.Random(seed), memory.num_rows, memory.num_queries)
    torch.manual_seed(seed)
    memory.cache.normal_()
    memory.query.normal_(std=2)
    common = memory.write(rows, lengths)
    memory.output.fill_(float("nan"))
    once = memory.attend(builder.build(0, common)).clone()
    builder.build(0, common, groups=groups if groups.num_rows else None, for_graph=True)
    memory.output.fill_(float("nan"))
    graph.replay()
    num = len(rows) * memory.num_queries
    torch.testing.assert_close(memory.output[:num], once[:num], atol=1e-5, rtol=0)
    return len(groups.num_rows)


def test_a_replayed_graph_is_one_pass_whatever_groups_there_are(tier):
    """Graphs of several sizes share buffers, are captured once, and replayed in any order.

    Some have drafts: three or four new tokens a row.
    """
    builder, chance = _builder(64), random.Random(0)
    memories = [Memory(*size) for size in ((2, 1), (3, 1), (8, 1), (16, 1), (4, 3), (12, 4))]
    graphs = [_capture(builder, memory) for memory in memories]
    found: list[int] = []
    for seed in range({Tier.FIRST: 60, Tier.CI: 120, Tier.ALL: 1000}[tier]):
        graph, memory = chance.choice(list(zip(graphs, memories, strict=True)))
        found.append(_replay_is_one_pass(graph, builder, memory, seed))
    assert {0, 1, 2, 3} <= set(found)


def test_a_graph_reads_memory_that_stays_and_nothing_else():
    builder, memory = _builder(16), Memory(8)
    graph = _capture(builder, memory)
    stays = [*vars(memory).values(), *builder.for_graphs.buffers]
    places = {t.untyped_storage().data_ptr() for t in stays if isinstance(t, torch.Tensor)}
    assert graph.external.keys() <= places
    passes = {t.untyped_storage().data_ptr() for t in builder.for_graphs.buffers}
    assert passes <= graph.external.keys()


def test_numbers_of_a_graph_depend_on_its_size_alone():
    passes, starts = FixedPasses(16, MAX_BLOCKS, 384, torch.device("cpu")), torch.zeros(9, dtype=torch.int32)
    of = passes.of(8, 1, starts)
    assert (of.num_grouped, of.shared.max_queries, of.own.max_queries) == (8, 8, 1)
    assert of.shared.max_length == of.own.max_length == 384
    assert (len(of.shared.lengths), len(of.own.lengths)) == (5, 8)
    of = passes.of(8, 4, starts)
    assert (of.num_grouped, of.shared.max_queries, of.own.max_queries) == (32, 32, 4)


def _longest_of_step(monkeypatch):
    fixed = FixedPasses.of
    kept: list[int] = []
    take_over = FixedPasses.refill

    def noted(self: Any, passes: Any) -> None:
        kept[:] = [passes.own.max_length]
        take_over(self, passes)

    def of(self: Any, *args: Any) -> Any:
        passes = fixed(self, *args)
        own = type(passes.own)(**vars(passes.own) | {"max_length": kept[0]})
        return type(passes)(passes.num_grouped, passes.shared, own)

    monkeypatch.setattr(FixedPasses, "refill", noted)
    monkeypatch.setattr(FixedPasses, "of", of)


def _groups_of_step(monkeypatch):
    def padded(self: Any, total_rows: int) -> Any:
        rest = total_rows - self.total_rows
        return StepGroups(0, (*self.num_rows, rest), (*self.num_tokens, 0))

    monkeypatch.setattr(StepGroups, "padded", padded)
    monkeypatch.setattr(
        "forkjoin_scheduler.tensors.fixed_passes.max_groups", lambda num_rows: 1 if num_rows < 16 else 9
    )


def _tables_of_step(monkeypatch):
    refill = GraphPasses.refill

    def of_step(self: Any, passes: Any) -> Any:
        fixed = refill(self, passes)
        own = type(fixed.own)(**vars(fixed.own) | {"block_table": passes.own.block_table})
        return type(fixed)(fixed.num_grouped, fixed.shared, own)

    monkeypatch.setattr(GraphPasses, "refill", of_step)


def _rows_of_step(monkeypatch):
    merge = flash_attn.merge_attn_states

    def of_some(output: Any, shared: Any, shared_lse: Any, own: Any, own_lse: Any) -> None:
        num = len(output) // 2
        merge(output[:num], shared[:num], shared_lse[:, :num], own[:num], own_lse[:, :num])

    monkeypatch.setattr(flash_attn, "merge_attn_states", of_some)


def _schedules_of_step(monkeypatch):
    monkeypatch.setattr(GraphPasses, "keep", lambda _, scheduled: scheduled)


@pytest.mark.parametrize(
    "bake", [_longest_of_step, _groups_of_step, _tables_of_step, _rows_of_step, _schedules_of_step]
)
def test_a_value_that_is_left_to_python_is_seen(monkeypatch, bake):
    """The control: with any number or table of the captured step in its calls, a graph goes wrong."""
    monkeypatch.setattr(flash_attn, "flash_attn_varlen_func", RecordedGraph.kernel(_told_the_truth))
    _replay_steps()
    bake(monkeypatch)
    with pytest.raises((AssertionError, IndexError, RuntimeError)):
        _replay_steps()


def _replay_steps() -> None:
    builder, memory = _builder(16), Memory(8)
    graph = _capture(builder, memory)
    for seed in range(8):
        _replay_is_one_pass(graph, builder, memory, seed)


def _told_the_truth(**more: Any) -> Any:
    """Attends if its schedule was made for what it is to do."""
    numbers = [more["max_seqlen_q"], more["max_seqlen_k"], *more["seqused_k"].tolist()]
    assert more["scheduler_metadata"].tolist() == numbers
    return stand_in.attend_padded(**more)
