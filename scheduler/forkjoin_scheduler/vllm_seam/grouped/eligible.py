"""What can be grouped: which engines and which layers, and why not where not.

Whatever is not known to work is left as it is. Layers are looked at one by one: those with a window beside
those without keep vLLM's attention.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm import envs
from vllm.config import CUDAGraphMode
from vllm.platforms import current_platform
from vllm.v1.attention.backend import AttentionType
from vllm.v1.attention.backends.flash_attn import FlashAttentionImpl, FlashAttentionMetadataBuilder
from vllm.v1.kv_cache_interface import FullAttentionSpec, is_quantized_kv_cache

Check = tuple[str, Callable[[Any], bool]]


def _has_no_pieces(config: Any) -> bool:
    """Whether graphs are captured, but none in which attention runs by itself."""
    mode = config.compilation_config.cudagraph_mode
    return bool(mode != CUDAGraphMode.NONE and mode.mixed_mode() != CUDAGraphMode.PIECEWISE)


#: (what can't be grouped, whether a VllmConfig has it)
_OF_ENGINE: tuple[Check, ...] = (
    # Passes and scheduler take rows with drafts, but no engine has run them. Adaptive verification stays
    # refused: with it only the device knows how many drafts a row has.
    ("speculative decoding", lambda c: c.speculative_config is not None),
    ("pipeline parallelism", lambda c: c.parallel_config.pipeline_parallel_size > 1),
    ("context parallelism", lambda c: c.parallel_config.decode_context_parallel_size > 1
     or c.parallel_config.prefill_context_parallel_size > 1),
    ("batches in two halves (--enable-dbo)", lambda c: c.parallel_config.use_ubatching),
    ("VLLM_BATCH_INVARIANT", lambda _: bool(envs.VLLM_BATCH_INVARIANT)),
    ("a model with reference windows", lambda c: c.model_config.rswa_window is not None),
    ("a model that reads its prompt in both directions", lambda c: c.model_config.is_mm_prefix_lm),
    ("CUDA graphs of whole steps only (PIECEWISE ones are needed)", _has_no_pieces),
)  # fmt: skip

#: (what can't be grouped, whether a layer's attention has it)
_OF_LAYER: tuple[Check, ...] = (
    ("another attention backend than FlashAttention", lambda i: type(i) is not FlashAttentionImpl),
    ("attention that is not a decoder's", lambda i: i.attn_type != AttentionType.DECODER),
    ("sliding windows", lambda i: i.sliding_window != (-1, -1)),
    ("attention sinks", lambda i: i.sinks is not None),
    ("ALiBi", lambda i: i.alibi_slopes is not None),
    ("a quantized KV cache", lambda i: is_quantized_kv_cache(i.kv_cache_dtype)),
    ("FlashAttention of another version than 2 and 3", lambda i: i.vllm_flash_attn_version not in (2, 3)),
)  # fmt: skip


def server_reason(vllm_config: Any) -> str | None:
    """Why a server like this groups nothing, as far as it is known before it starts."""
    if not current_platform.is_cuda():
        return "no CUDA device"
    return engine_reason(vllm_config) if vllm_config.use_v2_model_runner else "vLLM's first model runner"


def engine_reason(vllm_config: Any) -> str | None:
    """Why nothing is grouped in an engine like this; None if layers may be."""
    return next((reason for reason, has_it in _OF_ENGINE if has_it(vllm_config)), None)


def layer_reason(impl: Any) -> str | None:
    """Why a layer with this attention is not grouped; None if it can be."""
    return next((reason for reason, has_it in _OF_LAYER if has_it(impl)), None)


def graphs_reason(vllm_config: Any, impls: list[Any]) -> str | None:
    """Why graphs of whole steps have no groups in an engine whose other steps have; None if they may."""
    if vllm_config.lora_config is not None:
        return "LoRA adapters"
    if any(impl.vllm_flash_attn_version != 3 for impl in impls):
        return "FlashAttention of another version than 3"
    return None


def group_reason(attn_group: Any) -> str | None:
    """Why layers that share KV blocks and metadata are not grouped; None if some may be."""
    spec = attn_group.kv_cache_spec
    if type(spec) is not FullAttentionSpec or spec.sliding_window or spec.attention_chunk_size:
        return "KV caches other than of full attention"
    if type(attn_group.get_metadata_builder()) is not FlashAttentionMetadataBuilder:
        return "another attention backend than FlashAttention"
    if attn_group.kernel_block_size is not None:
        return "a KV cache with blocks of two sizes"
    return None
