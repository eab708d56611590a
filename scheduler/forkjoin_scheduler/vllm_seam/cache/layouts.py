"""Whether an engine's KV cache can be stitched: facts of its layers, and what is refused.

``tensors/slots.py`` knows how a token's KV is moved in each layout. What it lacks is refused at start.

Invariant (pinned by tests/engine/test_layouts.py): kernel blocks cut a scheduler's block into equal pieces
that follow each other, so that a slot, counted through all blocks, has the same number in both (``facts_of``
finds the layouts where not).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from vllm._custom_ops import cpu_has_amx_fp8
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.kv_cache_interface import KVQuantMode, is_quantized_kv_cache

from forkjoin_scheduler.tensors import slots
from forkjoin_scheduler.tensors.slots import COPIERS, Copier, Layout, slot_copier
from forkjoin_scheduler.tensors.tokens import Int64s
from forkjoin_scheduler.vllm_seam.mends.drafting import drafts_with_kv

#: Kinds of KV cache whose KV may be stitched: that of a token is in one slot.
STITCHED_SPECS = {"FullAttentionSpec", "MLAAttentionSpec", "SlidingWindowSpec"}
#: What scales belong to: the layer, so that a token's bytes mean the same in each slot.
COPIED_MODES = {KVQuantMode.NONE, KVQuantMode.FP8_PER_TENSOR}


def _names(layouts: Iterable[Layout]) -> str:
    return ", ".join(name if isa is None else f"{name} ({isa})" for name, isa in layouts)


def copy_slots(caches: Iterable[tuple[Copier, torch.Tensor]], slot_copies: Int64s) -> None:
    """``slots.copy_slots``, with vLLM's way to the device."""
    slots.copy_slots(caches, slot_copies, async_tensor_h2d)


# ---- what can't be stitched ----------------------------------------------------------------


@dataclass(frozen=True)
class CacheFacts:
    """What of an engine decides whether KV can change its slot, and a token its position."""

    #: Of all layers, without repetition.
    layouts: tuple[Layout, ...]
    #: vLLM's names of their kinds of KV cache, without repetition.
    specs: tuple[str, ...] = ("FullAttentionSpec",)
    num_groups: int = 1
    cache_dtype: str = "auto"
    #: Whether a token's KV has scales of its own, beside it.
    has_token_scales: bool = False
    #: Tokens that a layer looks back, where it may not see all of them; of several the fewest.
    window: int | None = None
    max_model_len: int = 0
    #: Content other than K and V of one head size for each token, or attention to later tokens.
    is_irregular: bool = False
    #: Kernel blocks that do not follow each other, other layers' lying between.
    is_interleaved: bool = False
    has_alibi: bool = False
    #: Positions that a forward pass computes again, of what is left of videos.
    recomputes_positions: bool = False
    num_context_ranks: int = 1
    #: The method of speculative decoding, if it has KV of its own.
    drafts_with_kv: str | None = None

    @property
    def spec_names(self) -> str:
        """The kinds of KV cache, for a reader."""
        return ", ".join(self.specs)

    @property
    def is_windowed(self) -> bool:
        """Whether a layer may not see all of a context, for it has more tokens than the layer's window."""
        if self.window is None:
            return "SlidingWindow" in self.spec_names or "ChunkedLocal" in self.spec_names
        return self.window < self.max_model_len

    @property
    def unknown_layouts(self) -> str:
        """The layouts that have no copier, for a reader; empty if all have one."""
        return _names(layout for layout in self.layouts if slot_copier(*layout) is None)


def prunes_media(model_config: Any) -> bool:
    """Whether parts of videos are dropped: the positions after one are then known where it is encoded."""
    multimodal = model_config.multimodal_config
    return multimodal is not None and bool(multimodal.is_multimodal_pruning_enabled())


def has_media_of_one_request(model_config: Any) -> bool:
    """Whether only the request that brought an image can use it.

    That is so where parts are dropped, and in shared memory, where it may be overwritten once it was read.
    """
    multimodal = model_config.multimodal_config
    is_read_once = multimodal is not None and multimodal.mm_processor_cache_type == "shm"
    return is_read_once or prunes_media(model_config)


def recomputes_positions(model_config: Any) -> bool:
    """Whether a forward pass computes positions again that have been given to it."""
    return bool(model_config.uses_mrope and prunes_media(model_config))


def layout_of(backend: Any, layer: Any) -> Layout:
    """The name of the layout of ``layer``, whose attention runs on ``backend``."""
    isa = getattr(layer, "isa", None)
    return backend.get_name(), None if isa is None else kernels(isa, layer.kv_cache_dtype)


def kernels(isa: str, cache_dtype: str) -> str:
    """The name of the CPU's kernels for a KV cache of ``cache_dtype``.

    Newer CPUs multiply fp8 as it is: what AMX's tiles hold there, we have not looked at.
    """
    is_of_fp8 = isa == "amx" and is_quantized_kv_cache(cache_dtype) and cpu_has_amx_fp8()
    return "amx_fp8" if is_of_fp8 else isa


def facts_of(vllm_config: Any, kv_cache_config: Any, attn_groups: Any) -> CacheFacts:
    """The facts of a model runner whose KV cache and attention backends are set up."""
    groups = [group for groups in attn_groups for group in groups]
    specs = [group.kv_cache_spec for group in groups]
    layers = vllm_config.compilation_config.static_forward_context
    layouts = [layout_of(g.backend, layers[name]) for g in groups for name in g.layer_names]
    impls = [getattr(layers[name], "impl", None) for g in groups for name in g.layer_names]
    cache_dtype = vllm_config.cache_config.cache_dtype
    parallel = vllm_config.parallel_config
    return CacheFacts(
        layouts=tuple(dict.fromkeys(layouts)),
        specs=tuple(dict.fromkeys(type(spec).__name__ for spec in specs)),
        num_groups=len(kv_cache_config.kv_cache_groups),
        cache_dtype=cache_dtype,
        has_token_scales=any(
            getattr(s, "kv_quant_mode", KVQuantMode.NONE) not in COPIED_MODES for s in specs
        ),
        window=min(filter(None, map(_window, specs)), default=None),
        max_model_len=vllm_config.model_config.max_model_len,
        is_irregular=any(map(_is_irregular, specs)),
        is_interleaved=any(group.kernel_block_size is not None for group in groups),
        has_alibi=any(getattr(impl, "alibi_slopes", None) is not None for impl in impls),
        recomputes_positions=recomputes_positions(vllm_config.model_config),
        num_context_ranks=parallel.decode_context_parallel_size * parallel.prefill_context_parallel_size,
        drafts_with_kv=drafts_with_kv(vllm_config),
    )


def _window(spec: Any) -> int | None:
    return getattr(spec, "sliding_window", None) or getattr(spec, "attention_chunk_size", None)


def _is_irregular(spec: Any) -> bool:
    """Whether a stitched ``spec`` is yet not [block, KV head, token, K | V] (MLA has no V)."""
    name = type(spec).__name__
    if name not in STITCHED_SPECS:
        return False
    return (
        (spec.head_size_v != spec.head_size and name != "MLAAttentionSpec")
        or spec.tokens_per_state != 1
        or spec.num_head_slots is not None
        or spec.state_content_bytes is not None
        or getattr(spec, "non_causal", False)
    )


_OTHER_JOIN = "use a dialect that joins by prefilling again, or serve with --dialect none"

#: (whether the facts have it; expected; seen; what to do, if more than _OTHER_JOIN). The first that
#: applies is told, so what explains more stands first.
Refusal = tuple[Callable[[CacheFacts], object], str, str, str]
REFUSALS: tuple[Refusal, ...] = (
    (lambda f: f.drafts_with_kv,
     "drafts that are looked up (ngram, suffix)",
     "{f.drafts_with_kv}, whose own KV and positions would stay behind",
     "name one of them in --speculative-config, or drop it"),
    (lambda f: f.num_context_ranks > 1,
     "all KV of a sequence on one rank", "context parallelism over {f.num_context_ranks} ranks",
     "set the decode and prefill context parallel sizes to 1"),
    (lambda f: f.recomputes_positions,
     "positions that are known before the forward pass",
     "M-RoPE with --video-pruning-rate, which computes them again", "drop --video-pruning-rate"),
    (lambda f: f.has_alibi,
     "positions that the model is given", "ALiBi slopes, which count by the slots of the KV cache", ""),
    (lambda f: "Mamba" in f.spec_names,
     "the KV of each token, in a slot of its own",
     "Mamba layers ({f.spec_names}), whose state is of the whole sequence", ""),
    (lambda f: f.is_windowed,
     "attention to all tokens",
     "a sliding window or local chunks ({f.spec_names}), which count by slots",
     "set --max-model-len to the window's tokens at most, so that it never ends"),
    (lambda f: set(f.specs) - STITCHED_SPECS,
     f"one of the KV cache specs {', '.join(sorted(STITCHED_SPECS))} in all layers", "{f.spec_names}", ""),
    (lambda f: f.num_groups != 1,
     "one KV cache group", "{f.num_groups}, each with blocks of its own",
     "set --disable-hybrid-kv-cache-manager"),
    (lambda f: f.has_token_scales,
     "a KV cache in the model's precision, or in fp8 with one scale a layer",
     "a quantised one ({f.cache_dtype}), whose scales of each token would not move along",
     "set --kv-cache-dtype to fp8 or to the model's"),
    (lambda f: f.is_irregular,
     "K and V of one head size for each token, causal attention", "packed, uneven or non-causal ones", ""),
    (lambda f: f.is_interleaved,
     "kernel blocks that follow each other", "kernel blocks with other layers' between them",
     "reduce --block-size to the kernels', or set VLLM_KV_CACHE_LAYOUT=LBNHC"),
    (lambda f: f.unknown_layouts,
     f"one of the KV layouts {_names(COPIERS)}", "{f.unknown_layouts}",
     "choose one of them with --attention-backend"),
)  # fmt: skip


def refusal(facts: CacheFacts) -> str | None:
    """Why the stitched join can't run on an engine with these facts, or None if it can."""
    for has_it, expected, seen, remedy in REFUSALS:
        if has_it(facts):
            to_do = f"{remedy}; or {_OTHER_JOIN}" if remedy else _OTHER_JOIN
            return f"the stitched join expects {expected}, found {seen.format(f=facts)}: {to_do}"
    return None
