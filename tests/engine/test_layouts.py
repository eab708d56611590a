"""How KV moves in each named layout, what metadata look like, and what is refused.

These tests import vLLM and torch but start no engine. What the CPU kernels keep in a block is asked of
vLLM's own op; views for the GPU backends are made by vLLM's own code, in CPU memory.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from vllm import _custom_ops as ops
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend
from vllm.v1.attention.backends.flash_attn import FlashAttentionBackend
from vllm.v1.attention.backends.mla.amx_mla import AMXMLAImpl
from vllm.v1.attention.backends.registry import AttentionBackendEnum
from vllm.v1.attention.backends.triton_attn import TritonAttentionBackend
from vllm.v1.attention.backends.utils import _DEFAULT_LAYOUT_PREFERENCE
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheTensor,
    KVQuantMode,
    MLAAttentionSpec,
    compute_layout_strides,
    create_kv_cache_views,
)
from vllm.v1.kv_cache_layout import KVCacheLayout

from forkjoin_scheduler.tensors.slots import COPIERS, slot_copier
from forkjoin_scheduler.vllm_seam.cache import layouts
from forkjoin_scheduler.vllm_seam.cache.layouts import (
    REFUSALS,
    CacheFacts,
    copy_slots,
    facts_of,
    layout_of,
    refusal,
)
from forkjoin_scheduler.vllm_seam.cache.worker_step_metadata import (
    NOTHING,
    WorkerStepMetadata,
    attach,
    metadata_of,
)
from forkjoin_scheduler.vllm_seam.worker import OffsetPositions, PathIds

HEADS, BLOCKS = 2, 8
GUARD = 256  # bytes in front of the layers and behind them, which no copy may touch
ISAS = [("vec", 32, 64), ("vec", 128, 64), ("vec16", 16, 64), ("vec16", 32, 80), ("vec16", 128, 80)]
ISAS += [("amx", 32, 32), ("amx", 32, 64), ("amx", 128, 128)]


@dataclass(frozen=True)
class Memory:
    """The KV caches of ``num_layers`` layers in one buffer, laid out and viewed by vLLM's own code."""

    layout: KVCacheLayout
    block_size: int
    head_size: int = 8
    num_layers: int = 3
    kernel_block_size: int | None = None
    dtype: torch.dtype = torch.bfloat16
    spec_class: type[FullAttentionSpec] = FullAttentionSpec
    num_heads: int = HEADS

    @property
    def spec(self) -> FullAttentionSpec:
        return self.spec_class(
            block_size=self.block_size,
            num_kv_heads=self.num_heads,
            head_size=self.head_size,
            dtype=self.dtype,
        )

    def random_bytes(self, seed: int = 0) -> torch.Tensor:
        size = 2 * GUARD + self.num_layers * BLOCKS * self.spec.page_size_bytes
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(-128, 128, (size,), dtype=torch.int8, generator=generator)

    def views(self, raw: torch.Tensor) -> list[torch.Tensor]:
        layer, block, *_ = compute_layout_strides(self.spec, BLOCKS, self.num_layers, self.layout)
        names = [f"layers.{i}" for i in range(self.num_layers)]
        placed = KVCacheTensor(
            size=len(raw), layers=names, layer_stride=layer, block_stride=block, offset=GUARD
        )
        return create_kv_cache_views(raw, self.spec, BLOCKS, self.layout, placed, self.kernel_block_size)

    def kernel_slot(self, slot: int) -> tuple[int, int]:
        """(kernel block, offset) of a scheduler's slot: a block's pieces follow each other."""
        block, offset = divmod(slot, self.block_size)
        size = self.kernel_block_size or self.block_size
        return block * (self.block_size // size) + offset // size, offset % size


def _random_copies(num_slots: int, length: int, seed: int = 1) -> np.ndarray:
    """``length`` copies whose sources and destinations are all different slots."""
    return np.random.default_rng(seed).permutation(num_slots)[: 2 * length].reshape(length, 2)


def _moved_one_by_one(memory: Memory, raw: torch.Tensor, copies: np.ndarray) -> torch.Tensor:
    """A copy of ``raw`` in which the K and V of each token were moved, one token after the other."""
    moved = raw.clone()
    for cache in memory.views(moved):
        # how FLASH_ATTN, FLASHINFER and TRITON_ATTN take K and V from a cache
        keys, values = cache.transpose(1, 2).split(memory.head_size, dim=-1)
        for source, destination in copies.tolist():
            here, there = memory.kernel_slot(source), memory.kernel_slot(destination)
            keys[there] = keys[here].clone()
            values[there] = values[here].clone()
    return moved


def _layouts(backend: type | None) -> tuple[KVCacheLayout, ...]:
    """The physical layouts that a backend supports; FlashInfer, not installed here, names none either."""
    named = backend.supported_kv_cache_layouts() if backend else None
    return _DEFAULT_LAYOUT_PREFERENCE if named is None else named


ROWS = [
    pytest.param(name, layout, id=f"{name}-{layout.name}")
    for name, backend in {
        "FLASH_ATTN": FlashAttentionBackend,
        "FLASHINFER": None,
        "TRITON_ATTN": TritonAttentionBackend,
    }.items()
    for layout in _layouts(backend)
]


def _assert_moves_like_one_by_one(copier, memory, lengths):
    for length in lengths:
        raw = memory.random_bytes(seed=length)
        copies = _random_copies(BLOCKS * memory.block_size, length, seed=length)
        expected = _moved_one_by_one(memory, raw, copies)
        copy_slots([(copier, view) for view in memory.views(raw)], copies)
        assert torch.equal(raw, expected)


# ---- moving slots --------------------------------------------------------------------------


@pytest.mark.parametrize("block_size", [16, 32, 128])
@pytest.mark.parametrize(("name", "layout"), ROWS)
def test_a_copy_moves_the_k_and_v_of_the_ordered_slots_and_no_other_byte(name, layout, block_size):
    memory = Memory(layout, block_size)
    _assert_moves_like_one_by_one(slot_copier(name, None), memory, (1, block_size, 2 * block_size + 5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("name", "layout"), ROWS)
def test_a_copy_moves_k_and_v_of_other_precisions_too(name, layout, dtype):
    _assert_moves_like_one_by_one(slot_copier(name, None), Memory(layout, 16, dtype=dtype), (7, 40))


@pytest.mark.parametrize("sizes", [(32, 16), (128, 16), (128, 64)], ids=lambda s: f"{s[0]}by{s[1]}")
@pytest.mark.parametrize("layout", [KVCacheLayout.LBNHC, KVCacheLayout.LBHNC], ids=lambda x: x.name)
@pytest.mark.parametrize("name", ["FLASH_ATTN", "FLASHINFER", "TRITON_ATTN"])
def test_slots_count_through_kernel_blocks_that_cut_a_scheduler_block(name, layout, sizes):
    memory = Memory(layout, sizes[0], kernel_block_size=sizes[1])
    _assert_moves_like_one_by_one(slot_copier(name, None), memory, (1, 50, 2 * sizes[0] + 5))


@pytest.mark.parametrize("layout", _DEFAULT_LAYOUT_PREFERENCE, ids=lambda x: x.name)
def test_vllm_cuts_blocks_into_kernel_blocks_in_the_two_layouts_above_only(layout):
    memory = Memory(layout, 32, kernel_block_size=16)
    if layout in (KVCacheLayout.LBNHC, KVCacheLayout.LBHNC):
        assert [len(view) for view in memory.views(memory.random_bytes())] == [2 * BLOCKS] * 3
    else:
        with pytest.raises(ValueError, match="cannot be split into 2 kernel blocks"):
            memory.views(memory.random_bytes())


def _write(isa, caches, keys, values, slots, kv_cache_dtype="auto"):
    """What ``CPUAttentionBackendImpl.do_kv_cache_update`` does, in each of ``caches``."""
    for layer, cache in enumerate(caches):
        blocks, heads, size, _ = cache.size()
        halves = cache.view((blocks, heads, size * 2, -1)).chunk(2, dim=2)
        ops.cpu_attn_reshape_and_cache(
            keys[layer], values[layer], *halves, torch.from_numpy(slots), isa, k_scale=0.5, v_scale=2.0,
            kv_cache_dtype=kv_cache_dtype,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("isa", "block_size", "head_size", "dtype"),
    # vLLM takes AMX for bf16 only
    [(*case, torch.float32) for case in ISAS if case[0] != "amx"]
    + [(*case, torch.bfloat16) for case in ISAS],
    ids=str,
)
@pytest.mark.parametrize("layout", CPUAttentionBackend.supported_kv_cache_layouts(), ids=lambda x: x.name)
def test_cpu_kv_that_was_moved_is_what_the_op_writes_there(layout, isa, block_size, head_size, dtype):
    if isa == "amx" and not torch.cpu._is_amx_tile_supported():
        pytest.skip("a CPU without AMX")
    memory = Memory(layout, block_size, head_size, num_layers=2, dtype=dtype)
    for length in (1, 19, 2 * block_size + 5):
        moved, written = memory.random_bytes(), memory.random_bytes()
        copies = _random_copies(BLOCKS * block_size, length)
        keys, values = torch.randn(2, 2, length, HEADS, head_size, dtype=dtype)
        for raw in (moved, written):
            _write(isa, memory.views(raw), keys, values, copies[:, 0].copy())
        _write(isa, memory.views(written), keys, values, copies[:, 1].copy())
        assert not torch.equal(moved, written)
        copy_slots([(slot_copier("CPU_ATTN", isa), view) for view in memory.views(moved)], copies)
        assert torch.equal(moved, written)


@pytest.mark.parametrize("kv_cache_dtype", ["fp8_e4m3", "fp8_e5m2"])
@pytest.mark.parametrize(
    ("isa", "block_size", "head_size", "dtype"),
    [("vec", 32, 64, torch.float32), ("vec", 128, 32, torch.bfloat16), ("amx", 32, 64, torch.bfloat16)],
    ids=str,
)
def test_cpu_kv_in_fp8_that_was_moved_is_what_the_op_writes_there(
    isa, block_size, head_size, dtype, kv_cache_dtype
):
    """Its scale is the layer's: the bytes of a token are the same in each slot."""
    if not torch.cpu._is_avx512_supported():
        pytest.skip("a CPU without AVX-512: vLLM has no fp8 KV cache there")
    if isa == "amx" and (not torch.cpu._is_amx_tile_supported() or ops.cpu_has_amx_fp8()):
        pytest.skip("a CPU without AMX, or with one that multiplies fp8 as it is")
    memory = Memory(KVCacheLayout.LBHNC, block_size, head_size, num_layers=2, dtype=torch.uint8)
    moved, written = memory.random_bytes(), memory.random_bytes()
    copies = _random_copies(BLOCKS * block_size, 2 * block_size + 5)
    keys, values = torch.randn(2, 2, len(copies), HEADS, head_size, dtype=dtype)
    for raw in (moved, written):
        _write(isa, memory.views(raw), keys, values, copies[:, 0].copy(), kv_cache_dtype)
    _write(isa, memory.views(written), keys, values, copies[:, 1].copy(), kv_cache_dtype)
    assert not torch.equal(moved, written)
    copy_slots([(slot_copier("CPU_ATTN", isa), view) for view in memory.views(moved)], copies)
    assert torch.equal(moved, written)


MLA = [name for name, _ in COPIERS if "MLA" in name]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.uint8], ids=str)
@pytest.mark.parametrize("layout", _DEFAULT_LAYOUT_PREFERENCE, ids=lambda x: x.name)
@pytest.mark.parametrize("name", MLA)
def test_a_latent_vector_that_was_moved_is_what_vllm_writes_there(name, layout, dtype):
    """Bytes of the cache's rows stand for what is written: all backends write by slot, a row at a time."""
    memory = Memory(layout, 16, 576, num_layers=2, dtype=dtype, spec_class=MLAAttentionSpec, num_heads=1)
    moved, written = memory.random_bytes(), memory.random_bytes()
    copies = _random_copies(BLOCKS * 16, 37)
    for cache in memory.views(written):
        rows = cache.squeeze(1)  # as MLAAttention.bind_kv_cache has it
        for source, destination in copies.tolist():
            rows[destination // 16, destination % 16] = rows[source // 16, source % 16].clone()
    copy_slots([(slot_copier(name, None), cache.squeeze(1)) for cache in memory.views(moved)], copies)
    assert torch.equal(moved, written)


def test_the_cpu_writes_a_latent_vector_and_its_key_into_the_row_of_its_slot():
    if not hasattr(torch.ops._C, "concat_and_cache_mla_cpu"):
        pytest.skip("a CPU for which vLLM's library has no MLA")
    latent, key = (torch.randn(shape, dtype=torch.bfloat16) for shape in ((3, 512), (3, 1, 64)))
    slots, cache = torch.tensor([5, 18, 40]), torch.zeros(4, 16, 576, dtype=torch.bfloat16)
    AMXMLAImpl.do_kv_cache_update(None, latent, key, cache, slots, "auto", None)
    expected = torch.zeros(64, 576, dtype=torch.bfloat16)
    expected[slots] = torch.cat([latent, key[:, 0]], -1)
    assert torch.equal(cache.view(-1, 576), expected)


@pytest.mark.parametrize(
    "name", ["CUTLASS_MLA", "FLASHINFER_MLA", "FLASHMLA", "FLASH_ATTN_MLA", "TRITON_MLA"]
)
def test_named_latent_backends_of_gpus_write_by_the_function_that_all_share(name):
    """Read, not imported: most of them can't be without a GPU."""
    module, _, _ = AttentionBackendEnum[name].get_path().rpartition(".")
    source = Path(find_spec(module).origin).read_text()
    assert f'return "{name}"' in source
    assert "Impl(MLACommonImpl" in source
    assert "def do_kv_cache_update" not in source


@pytest.mark.parametrize("isa", ["vec", "vec16"])
def test_the_cpu_keeps_k_by_columns_and_v_by_rows(isa):
    cache = torch.tensor([[[[0.0, 1, 10, 11], [2, 3, 12, 13]]]])
    # one head of size 2, blocks of 2: K = [[0, 1], [10, 11]] by columns, V = [[2, 3], [12, 13]] by rows
    copy_slots([(slot_copier("CPU_ATTN", isa), cache)], np.array([[0, 1]]))
    assert cache.flatten().tolist() == [0, 0, 10, 10, 2, 3, 2, 3]


@pytest.mark.parametrize(("block_size", "head_size"), [(32, 32), (128, 64)])
def test_amx_has_tiles_of_pairs_of_a_head_for_k_and_of_tokens_for_v(block_size, head_size):
    cache = torch.randn(2, 1, block_size, 2 * head_size, dtype=torch.bfloat16)
    before, source, destination = cache.clone().view(2, -1).tolist(), 21, block_size + 6
    copy_slots([(slot_copier("CPU_ATTN", "amx"), cache)], np.array([[source, destination]]))

    def key(slot, i):
        token = slot % block_size
        return (token // 16 * head_size // 2 + i // 2) * 32 + token % 16 * 2 + i % 2

    def value(slot, i):
        token = slot % block_size
        return block_size * head_size + (i // 16 * block_size // 2 + token // 2) * 32 + i % 16 * 2 + token % 2

    for place in (key, value):
        for i in range(head_size):
            before[1][place(destination, i)] = before[0][place(source, i)]
    assert cache.view(2, -1).tolist() == before


#: Those that a block of two tokens with one head of size 1 can be laid out in.
SMALL = {
    layout: copier
    for layout, copier in COPIERS.items()
    if layout != ("CPU_ATTN", "amx") and "MLA" not in layout[0]
}
ALL = pytest.mark.parametrize("copier", SMALL.values(), ids=[f"{n}-{i}" for n, i in SMALL])


def _tokens(copier, cache):
    """What lies in each slot of a cache that has one head of size 1: its K, which is its V too."""
    halves = cache.reshape(len(cache), 2, -1)
    rows = cache[:, 0]
    keys, values = (
        (rows[..., 0], rows[..., 1])
        if copier is slot_copier("FLASH_ATTN", None)
        else (halves[:, 0], halves[:, 1])
    )
    assert torch.equal(keys, values)
    return keys.flatten().tolist()


def _numbered(copier, num_blocks=2, size=2):
    """A cache whose slot i holds K = V = i."""
    blocks = torch.arange(num_blocks * size, dtype=torch.float32).view(num_blocks, 1, size)
    if copier is slot_copier("FLASH_ATTN", None):
        return torch.stack([blocks, blocks], dim=-1)
    return torch.cat([blocks, blocks], dim=-1).view(num_blocks, 1, size, 2)


@ALL
def test_slots_that_are_not_destinations_stay(copier):
    cache = _numbered(copier)
    assert _tokens(copier, cache) == [0, 1, 2, 3]
    copy_slots([(copier, cache)], np.array([[1, 2]]))
    assert _tokens(copier, cache) == [0, 1, 1, 3]


@ALL
def test_layers_that_share_a_cache_move_it_once(copier):
    cache = _numbered(copier)
    # moved at once, slot 1 gets 0 and slot 2 gets 1; moved again, slot 2 would get 0
    chain = np.array([[0, 1], [1, 2]])
    copy_slots([(copier, cache), (copier, cache.view(cache.shape))], chain)
    assert _tokens(copier, cache) == [0, 0, 1, 3]


@ALL
def test_layers_with_caches_of_their_own_all_move(copier):
    caches = [_numbered(copier) for _ in range(3)]
    copy_slots([(copier, cache) for cache in caches], np.array([[3, 0]]))
    assert [_tokens(copier, cache) for cache in caches] == [[3, 1, 2, 3]] * 3


@ALL
def test_an_empty_order_moves_nothing_and_looks_at_no_cache(copier):
    cache = _numbered(copier)
    copy_slots([(copier, cache)], NOTHING.slot_copies)
    assert _tokens(copier, cache) == [0, 1, 2, 3]
    copy_slots((pytest.fail("looked") for _ in range(1)), NOTHING.slot_copies)


def test_an_unpickled_order_that_may_not_be_written_is_obeyed():
    copier = slot_copier("FLASH_ATTN", None)
    cache, copies = _numbered(copier), np.array([[0, 3]])
    copies.setflags(write=False)
    copy_slots([(copier, cache)], copies)
    assert _tokens(copier, cache) == [0, 1, 2, 0]


def test_the_table_above_covers_every_named_layout():
    tested = {(param.values[0], None) for param in ROWS} | {("CPU_ATTN", isa) for isa, *_ in ISAS}
    assert tested | {(name, None) for name in MLA} == set(COPIERS)


@pytest.mark.parametrize(
    "layout", [("CPU_ATTN", "neon"), ("CPU_ATTN", None), ("FLASH_ATTN", "vec"), ("FLEX_ATTENTION", None)]
)
def test_a_layout_that_is_not_named_has_no_copier(layout):
    assert slot_copier(*layout) is None


# ---- metadata --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "offsets", [{}, {"a": [(1, 0)]}, {"not in the batch": [(1, 5)]}], ids=["none", "zero", "other's"]
)
def test_offsets_that_are_all_zero_are_none(offsets):
    assert WorkerStepMetadata(position_offsets=offsets).token_offsets(["a", "b"], np.array([1, 2])) is None


def test_the_offsets_of_a_request_are_those_of_its_tokens_in_their_order():
    metadata = WorkerStepMetadata(position_offsets={"c": [(2, 7)], "a": [(1, 0), (2, -2)]})
    offsets = metadata.token_offsets(["a", "b", "c"], np.array([3, 1, 2]))
    assert offsets.tolist() == [0, -2, -2, 0, 7, 7]


def test_the_paths_of_a_batch_are_told_as_offsets_are():
    metadata = WorkerStepMetadata(paths={"b": [(2, 0), (1, 3)]})
    assert metadata.token_paths(["a", "b"], np.array([1, 3])).tolist() == [0, 0, 0, 3]
    assert metadata.token_paths(["a"], np.array([1])) is None
    assert metadata.token_offsets(["a", "b"], np.array([1, 3])) is None


def test_counts_behind_those_of_the_batch_have_no_offset():
    metadata = WorkerStepMetadata(position_offsets={"a": [(2, 4)]})
    assert metadata.token_offsets(["a"], np.array([2, 9, 9], dtype=np.int32)).tolist() == [4, 4]


def test_orders_stay_on_a_scheduler_output_that_is_pickled():
    output = SchedulerOutput.make_empty()
    attach(
        output,
        WorkerStepMetadata(
            slot_copies=np.array([[3, 40], [4, 41]]),
            position_offsets={"a": [(1, 5)]},
            paths={"b": [(2, 1)]},
        ),
    )
    metadata = metadata_of(pickle.loads(pickle.dumps(output)))
    assert metadata.slot_copies.tolist() == [[3, 40], [4, 41]]
    assert metadata.slot_copies.dtype == np.int64
    assert metadata.position_offsets == {"a": [(1, 5)]}
    assert metadata.paths == {"b": [(2, 1)]}


def test_a_scheduler_output_without_orders_has_nothing_to_obey():
    output = pickle.loads(pickle.dumps(SchedulerOutput.make_empty()))
    assert metadata_of(output) is NOTHING
    assert NOTHING.slot_copies.shape == (0, 2)
    assert NOTHING.position_offsets == {}


# ---- what can't be stitched ----------------------------------------------------------------

PLAIN = (("FLASH_ATTN", None),)
OR_ELSE = "use a dialect that joins by prefilling again, or serve with --dialect none"

#: id -> (facts, words of: expected, seen, what to do), in the order of REFUSALS.
REFUSED = {
    "speculation": (
        {"drafts_with_kv": "eagle"},
        ("drafts that are looked up (ngram, suffix)", "eagle", "--speculative-config"),
    ),
    "context_parallel": (
        {"num_context_ranks": 4},
        ("all KV of a sequence on one rank", "over 4 ranks", "context parallel sizes to 1"),
    ),
    "pruned_videos": (
        {"recomputes_positions": True},
        ("known before the forward pass", "M-RoPE with --video-pruning-rate", "drop --video-pruning-rate"),
    ),
    "alibi": ({"has_alibi": True}, ("positions that the model is given", "ALiBi slopes", OR_ELSE)),
    "mamba": (
        {"specs": ("FullAttentionSpec", "MambaSpec")},
        ("the KV of each token", "Mamba layers (FullAttentionSpec, MambaSpec)", OR_ELSE),
    ),
    "window": (
        {"window": 4096, "max_model_len": 4097},
        (
            "attention to all tokens",
            "a sliding window or local chunks (FullAttentionSpec)",
            "set --max-model-len",
        ),
    ),
    "other_spec": (
        {"specs": ("FullAttentionSpec", "CrossAttentionSpec")},
        ("one of the KV cache specs", "found FullAttentionSpec, CrossAttentionSpec", OR_ELSE),
    ),
    "groups": (
        {"num_groups": 2},
        ("one KV cache group", "found 2, each with blocks", "set --disable-hybrid"),
    ),
    "quantized": (
        {"has_token_scales": True, "cache_dtype": "int8_per_token_head"},
        ("in fp8 with one scale a layer", "a quantised one (int8_per_token_head)", "set --kv-cache-dtype"),
    ),
    "irregular": ({"is_irregular": True}, ("K and V of one head size", "packed, uneven", OR_ELSE)),
    "interleaved": (
        {"is_interleaved": True},
        ("that follow each other", "other layers' between them", "set VLLM_KV_CACHE_LAYOUT=LBNHC"),
    ),
    "unknown": (
        {"layouts": (*PLAIN, ("CPU_ATTN", "neon"), ("FLEX_ATTENTION", None))},
        (
            "CPU_ATTN (amx), CPU_ATTN (vec)",
            "found CPU_ATTN (neon), FLEX_ATTENTION",
            "choose one of them with --attention",
        ),
    ),
}


def _facts(**changes) -> CacheFacts:
    return CacheFacts(**{"layouts": PLAIN, **changes})


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_says_what_was_expected_what_was_seen_and_what_to_do(case):
    changes, words = REFUSED[case]
    sentence = refusal(_facts(**changes))
    expects, rest = sentence.removeprefix("the stitched join expects ").split(", found ")
    seen, to_do = f"found {rest}".split(": ")
    assert [word in part for word, part in zip(words, (expects, seen, to_do), strict=True)] == [True] * 3
    assert to_do.endswith(OR_ELSE)


def test_each_row_of_the_refusals_is_the_first_that_applies_to_its_case():
    cases = [_facts(**changes) for changes, _ in REFUSED.values()]
    first = [next(i for i, row in enumerate(REFUSALS) if row[0](facts)) for facts in cases]
    assert first == list(range(len(REFUSALS)))


@pytest.mark.parametrize("spec", ["SlidingWindowSpec", "ChunkedLocalAttentionSpec"])
def test_a_window_is_known_by_the_kind_of_its_cache_too(spec):
    assert f"local chunks ({spec})" in refusal(_facts(specs=(spec,)))


@pytest.mark.parametrize("changes", [
    {"window": 4096, "max_model_len": 4096, "specs": ("SlidingWindowSpec",)},
    {"window": 4096, "max_model_len": 512},
    {"specs": ("MLAAttentionSpec",), "layouts": (("TRITON_MLA", None),)},
    {"cache_dtype": "fp8_e4m3"},
], ids=["window_of_the_context", "longer_window", "mla", "fp8"])  # fmt: skip
def test_what_a_copy_moves_as_it_is_and_each_context_sees_to_its_end_is_stitched(changes):
    assert refusal(_facts(**changes)) is None


@pytest.mark.parametrize("layout", COPIERS, ids=lambda layout: "-".join(filter(None, layout)))
def test_plain_facts_of_a_named_layout_are_not_refused(layout):
    assert refusal(_facts(layouts=(layout,))) is None


def _facts_of_a_runner(kernel_block_size=None, impl=None, spec_class=FullAttentionSpec, **spec) -> CacheFacts:
    """The facts of a stand-in for a runner that has one attention layer."""
    plain = {"block_size": 16, "num_kv_heads": 1, "head_size": 8, "dtype": torch.float32}
    group = SimpleNamespace(
        kv_cache_spec=spec_class(**{**plain, **spec}),
        backend=FlashAttentionBackend,
        layer_names=["attn"],
        kernel_block_size=kernel_block_size,
    )
    config = SimpleNamespace(
        compilation_config=SimpleNamespace(static_forward_context={"attn": SimpleNamespace(impl=impl)}),
        cache_config=SimpleNamespace(cache_dtype="auto"),
        parallel_config=SimpleNamespace(decode_context_parallel_size=1, prefill_context_parallel_size=1),
        model_config=SimpleNamespace(uses_mrope=False, multimodal_config=None, max_model_len=0),
        speculative_config=None,
    )
    return facts_of(config, SimpleNamespace(kv_cache_groups=[group]), [[group]])


def test_the_facts_of_a_plain_runner_are_the_plain_facts():
    assert _facts_of_a_runner() == _facts()


@pytest.mark.parametrize(
    ("runner", "facts"),
    [
        ({"kernel_block_size": 16}, {"is_interleaved": True}),
        ({"impl": SimpleNamespace(alibi_slopes=[0.5])}, {"has_alibi": True}),
        ({"sliding_window": 64}, {"window": 64}),
        ({"attention_chunk_size": 32}, {"window": 32}),
        ({"kv_quant_mode": KVQuantMode.INT8_PER_TOKEN_HEAD}, {"has_token_scales": True}),
        ({"kv_quant_mode": KVQuantMode.FP8_PER_TENSOR}, {}),
        ({"head_size_v": 4}, {"is_irregular": True}),
        ({"non_causal": True}, {"is_irregular": True}),
        ({"num_head_slots": 2}, {"is_irregular": True}),
        ({"state_content_bytes": 24}, {"is_irregular": True}),
        ({"tokens_per_state": 2}, {"is_irregular": True}),
    ],
    ids=lambda x: next(iter(x), ""),
)
def test_what_is_not_plain_in_a_runner_is_a_fact(runner, facts):
    assert _facts_of_a_runner(**runner) == _facts(**facts)


def test_a_latent_vector_has_no_v_and_is_irregular_only_if_it_is_packed():
    latent = {"spec_class": MLAAttentionSpec}
    assert _facts_of_a_runner(**latent) == _facts(specs=("MLAAttentionSpec",))
    assert _facts_of_a_runner(**latent, state_content_bytes=24).is_irregular


def test_a_layout_is_the_name_of_the_backend_and_of_the_kernels_if_the_layer_has_any():
    assert layout_of(FlashAttentionBackend, SimpleNamespace()) == ("FLASH_ATTN", None)
    layer = SimpleNamespace(isa="vec16", kv_cache_dtype="auto")
    assert layout_of(CPUAttentionBackend, layer) == ("CPU_ATTN", "vec16")


@pytest.mark.parametrize(("cache_dtype", "isa"), [("auto", "amx"), ("fp8", "amx_fp8")])
def test_amx_kernels_that_multiply_fp8_have_a_layout_of_their_own(monkeypatch, cache_dtype, isa):
    monkeypatch.setattr(layouts, "cpu_has_amx_fp8", lambda: True)
    layout = layout_of(CPUAttentionBackend, SimpleNamespace(isa="amx", kv_cache_dtype=cache_dtype))
    assert layout == ("CPU_ATTN", isa)
    assert slot_copier("CPU_ATTN", "amx_fp8") is None


# ---- positions of our own ------------------------------------------------------------------


class ModelState:
    """A stand-in for vLLM's, which gives the model its ids."""

    name = "inner"

    def prepare_inputs(self, input_batch, req_states):
        return {"ids": "real", "positions": "not these"}

    def prepare_dummy_inputs(self, num_reqs, num_tokens):
        return {"ids": "dummy"}


#: Two tokens of request a, three of b, one of padding.
BATCH = SimpleNamespace(
    req_ids=["a", "b"],
    num_scheduled_tokens=np.array([2, 3]),
    positions=torch.tensor([10, 11, 50, 51, 52, 0]),
    num_tokens_after_padding=6,
)


def _step(state, **offsets):
    num_tokens = dict(zip(BATCH.req_ids, BATCH.num_scheduled_tokens.tolist(), strict=True))
    state.metadata = WorkerStepMetadata(
        position_offsets={i: [(num_tokens[i], offset)] for i, offset in offsets.items()}
    )
    return state.prepare_inputs(BATCH, None)["positions"]


@pytest.fixture
def state():
    return OffsetPositions(ModelState(), like=torch.full((8,), 99), max_model_len=1000)


def test_positions_are_offset_where_ordered_and_equal_elsewhere(state):
    assert _step(state, b=-40).tolist() == [10, 11, 10, 11, 12, 0]
    assert BATCH.positions.tolist() == [10, 11, 50, 51, 52, 0]


def test_a_draft_that_would_find_no_room_is_at_the_last_position(state):
    assert _step(state, b=948).tolist() == [10, 11, 998, 999, 999, 0]


def test_an_offset_does_not_last_into_the_next_step(state):
    _step(state, a=5)
    assert _step(state).tolist() == BATCH.positions.tolist()


def test_every_step_and_a_graphs_capture_are_given_one_buffer_which_is_not_vllms(state):
    captured = state.prepare_dummy_inputs(1, 4)["positions"]
    assert captured.tolist() == [0] * 4
    buffers = {captured.data_ptr(), _step(state).data_ptr(), _step(state, a=1).data_ptr()}
    assert len(buffers) == 1
    assert BATCH.positions.data_ptr() not in buffers


def test_all_else_is_the_inner_states(state):
    assert state.name == "inner"
    assert state.prepare_inputs(BATCH, None)["ids"] == "real"
    assert state.prepare_dummy_inputs(1, 4)["ids"] == "dummy"


def test_with_m_rope_all_positions_of_a_token_are_offset_in_the_models_own_buffer():
    given = BATCH.positions.repeat(3, 1)

    class WithRope(ModelState):
        rope_state = "M-RoPE's"

        def prepare_inputs(self, input_batch, req_states):
            return {"positions": given}

        def prepare_dummy_inputs(self, num_reqs, num_tokens):
            return {"positions": given[:, :num_tokens]}

    state = OffsetPositions(WithRope(), like=torch.full((8,), 99), max_model_len=1000)
    assert _step(state, b=-40).tolist() == [[10, 11, 10, 11, 12, 0]] * 3
    assert state.prepare_dummy_inputs(1, 2)["positions"].data_ptr() == given.data_ptr()


# ---- paths ---------------------------------------------------------------------------------


@pytest.fixture
def buffer(state):
    model = SimpleNamespace(path_ids=torch.zeros(8, dtype=torch.long))
    state.paths = PathIds(model)
    return model.path_ids


def test_the_models_own_buffer_holds_the_path_of_each_token_of_the_step(state, buffer):
    for paths, held in [({"b": [(1, 0), (2, 4)]}, [0, 0, 0, 4, 4]), ({"a": [(2, 1)]}, [1, 1, 0, 0, 0])]:
        state.metadata = WorkerStepMetadata(paths=paths)
        state.prepare_inputs(BATCH, None)
        assert buffer[:5].tolist() == held


def test_a_path_does_not_last_into_a_step_without_paths(state, buffer):
    state.metadata = WorkerStepMetadata(paths={"b": [(3, 4)]})
    state.prepare_inputs(BATCH, None)
    state.metadata = NOTHING
    state.prepare_inputs(BATCH, None)
    assert not buffer.any()


def test_a_model_without_path_embeddings_is_told_nothing():
    PathIds(SimpleNamespace()).write(WorkerStepMetadata(paths={"a": [(1, 1)]}), ["a"], np.array([1]))
