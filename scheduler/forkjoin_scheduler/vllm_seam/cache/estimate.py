"""What an engine will find out when it starts, worked out before: its KV blocks, and their layout.

Blocks are those of a model whose layers all see all tokens, which holds for what can be stitched;
where some look back only so far, there are more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vllm.config import ParallelConfig, VllmConfig
from vllm.utils.torch_utils import kv_cache_dtype_str_to_dtype
from vllm.v1.attention.backends.cpu_attn import _get_attn_isa
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    MLAAttentionSpec,
    SlidingWindowSpec,
    get_kv_quant_mode,
)

from forkjoin_scheduler.vllm_seam.cache.layouts import (
    COPIED_MODES,
    CacheFacts,
    kernels,
    recomputes_positions,
    refusal,
)
from forkjoin_scheduler.vllm_seam.cache.machine import Machine
from forkjoin_scheduler.vllm_seam.compat import is_recurrent
from forkjoin_scheduler.vllm_seam.mends.drafting import drafts_with_kv


@dataclass(frozen=True)
class Cache:
    """The KV cache of one worker."""

    num_blocks: int
    block_size: int
    #: Of one block in all layers of one worker.
    block_bytes: int

    @property
    def num_tokens(self) -> int:
        """Tokens that fit in all."""
        return self.num_blocks * self.block_size


def cache_of(vllm_config: VllmConfig, weight_bytes: int, machine: Machine) -> Cache:
    """The KV cache that an engine with this config will have beside weights of ``weight_bytes``.

    Where vLLM measures what a step takes beside the weights, that is not subtracted: a little too much.
    """
    cache, model, parallel = vllm_config.cache_config, vllm_config.model_config, vllm_config.parallel_config
    block_bytes = _spec(vllm_config).page_size_bytes * model.get_num_layers(parallel)
    room: float
    if cache.kv_cache_memory_bytes is not None:
        room = cache.kv_cache_memory_bytes
    else:
        room = machine.total_bytes * cache.gpu_memory_utilization - _share(weight_bytes, parallel)
    num_blocks = cache.num_gpu_blocks_override or max(int(room) // block_bytes, 0)
    return Cache(num_blocks, cache.block_size, block_bytes)


def bytes_needed(vllm_config: VllmConfig, weight_bytes: int, machine: Machine) -> int:
    """What one worker takes of its device's memory when it starts."""
    cache = vllm_config.cache_config
    if cache.kv_cache_memory_bytes is None:
        return int(machine.total_bytes * cache.gpu_memory_utilization)
    return int(cache.kv_cache_memory_bytes + _share(weight_bytes, vllm_config.parallel_config))


def _share(weight_bytes: int, parallel_config: ParallelConfig) -> float:
    """Of the weights, what one worker holds: stages of a pipeline are taken for equally large."""
    return weight_bytes / (parallel_config.tensor_parallel_size * parallel_config.pipeline_parallel_size)


def _spec(vllm_config: VllmConfig) -> Any:
    cache, model = vllm_config.cache_config, vllm_config.model_config
    return (MLAAttentionSpec if model.use_mla else FullAttentionSpec)(
        block_size=cache.block_size,
        num_kv_heads=1 if model.use_mla else model.get_num_kv_heads(vllm_config.parallel_config),
        head_size=model.get_head_size(),
        dtype=kv_cache_dtype_str_to_dtype(cache.cache_dtype, model),
    )


def cache_groups(vllm_config: VllmConfig) -> KVCacheConfig:
    """The kinds of KV cache that an engine with this config will have, as groups of no layers."""
    spec, window = _spec(vllm_config), vllm_config.model_config.get_sliding_window()
    specs = [spec]
    if window and not vllm_config.scheduler_config.disable_hybrid_kv_cache_manager:
        specs.append(
            SlidingWindowSpec(
                block_size=spec.block_size,
                num_kv_heads=spec.num_kv_heads,
                head_size=spec.head_size,
                dtype=spec.dtype,
                sliding_window=window,
            )
        )
    return KVCacheConfig(0, [], [KVCacheGroupSpec([], each) for each in specs])


def stitching_refusal(vllm_config: VllmConfig, machine: Machine) -> str | None:
    """Why stitched joins can't run on an engine with this config, as far as can be seen before it starts."""
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    if is_recurrent(vllm_config):
        return refusal(CacheFacts(layouts=(), specs=("MambaSpec",)))
    cache_dtype = vllm_config.cache_config.cache_dtype
    spec = _spec(vllm_config)
    isa = None
    if machine.kind == "cpu" and not model.use_mla:
        isa = kernels(_get_attn_isa(model.dtype, spec.block_size, spec.head_size, cache_dtype), cache_dtype)
    facts = CacheFacts(
        layouts=() if isa is None else (("CPU_ATTN", isa),),
        specs=(type(spec).__name__,),
        cache_dtype=cache_dtype,
        has_token_scales=get_kv_quant_mode(cache_dtype) not in COPIED_MODES,
        window=model.get_sliding_window(),
        max_model_len=model.max_model_len,
        recomputes_positions=recomputes_positions(model),
        num_context_ranks=parallel.decode_context_parallel_size * parallel.prefill_context_parallel_size,
        drafts_with_kv=drafts_with_kv(vllm_config),
    )
    return refusal(facts)
