"""A stand-in of vLLM's FlashAttention for CPUs, in plain torch: vLLM's backend, builder and layers run on it.

It checks what the kernels take for granted: no row without keys, lengths within what they were said to be, and
blocks that the tables have.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from vllm.v1.attention.backends import flash_attn
from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

from forkjoin_scheduler.vllm_seam.grouped.flash_attention import GroupedAttention

VERSION = 3


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    cu_seqlens_q: torch.Tensor,
    max_seqlen_q: int,
    seqused_k: torch.Tensor,
    max_seqlen_k: int,
    block_table: torch.Tensor,
    softmax_scale: float,
    causal: bool = False,
    out: torch.Tensor | None = None,
    return_softmax_lse: bool = False,
    **_: Any,
) -> Any:
    """What ``flash_attn_varlen_func`` computes of paged KV: k, v [blocks, block size, KV heads, head size]."""
    out = torch.empty_like(q) if out is None else out
    lse = torch.empty(q.shape[1], len(q))
    starts, lengths = cu_seqlens_q.tolist(), seqused_k.tolist()
    assert len(starts) == len(lengths) + 1 == len(block_table) + 1
    assert block_table.dtype == seqused_k.dtype == cu_seqlens_q.dtype == torch.int32
    for row, (start, end, length) in enumerate(zip(starts[:-1], starts[1:], lengths, strict=True)):
        num = end - start
        assert 0 < num <= max_seqlen_q
        assert num <= length <= max_seqlen_k or not causal
        assert 0 < length <= max_seqlen_k
        blocks = block_table[row, : -(-length // k.shape[1])].long()
        assert len(blocks) * k.shape[1] >= length
        keys, values = (x[blocks].flatten(0, 1)[:length].float() for x in (k, v))
        keys, values = (x.repeat_interleave(q.shape[1] // k.shape[2], dim=1) for x in (keys, values))
        scores = torch.einsum("qhd,khd->hqk", q[start:end].float(), keys) * softmax_scale
        if causal:
            scores = scores.masked_fill(~torch.ones(num, length).tril(length - num).bool(), float("-inf"))
        lse[:, start:end] = scores.logsumexp(-1)
        out[start:end] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), values).to(out.dtype)
    return (out, lse) if return_softmax_lse else out


def attend_padded(**more: Any) -> Any:
    """The same of runs without queries or without keys, which graphs of whole steps have.

    Rows of a run without keys get zeros and -inf, as FlashAttention 3 writes; rows in no run are not written.
    """
    q, starts, lengths = more["q"], more["cu_seqlens_q"], more["seqused_k"]
    out = torch.full_like(q, float("nan")) if more.get("out") is None else more["out"]
    lse = torch.full((q.shape[1], len(q)), float("nan"))
    assert len(starts) == len(lengths) + 1 == len(more["block_table"]) + 1
    assert len(q) >= int(starts.max()), "queries that there are not"
    for run, (start, end) in enumerate(zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)):
        assert 0 <= end - start <= more["max_seqlen_q"]
        if int(lengths[run]) == 0:
            out[start:end], lse[:, start:end] = 0, float("-inf")
        elif end > start:
            alone = {
                "q": q[start:end], "out": out[start:end], "cu_seqlens_q": torch.tensor([0, end - start]).int(),
                "seqused_k": lengths[run : run + 1], "block_table": more["block_table"][run : run + 1],
                "return_softmax_lse": True,
            }  # fmt: skip
            _, lse[:, start:end] = attend(**more | alone)
    return (out, lse) if more.get("return_softmax_lse") else out


def _store(
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    *_: Any,
) -> None:
    """What ``reshape_and_cache_flash`` does."""
    is_real = slot_mapping >= 0
    slots, size = slot_mapping[is_real], key_cache.shape[1]
    key_cache[slots // size, slots % size] = key[: len(slot_mapping)][is_real]
    value_cache[slots // size, slots % size] = value[: len(slot_mapping)][is_real]


class StandIn(flash_attn.FlashAttentionBackend):
    """vLLM's backend, for tests in fp32 too."""

    supported_dtypes: ClassVar[list[torch.dtype]] = [torch.float32, torch.bfloat16]


def functions() -> dict[str, Any]:
    """What of vLLM's module is stood in for, by name."""
    return {
        "flash_attn_varlen_func": attend,
        "reshape_and_cache_flash": _store,
        "get_scheduler_metadata": lambda **_: None,
        "get_flash_attn_version": lambda *_, **__: VERSION,
    }


def kernels_of_graphs() -> dict[str, Any]:
    """The same functions, for graphs of whole steps."""
    return functions() | {"flash_attn_varlen_func": attend_padded}


def use_flash_attention() -> None:
    """Let engines of this process attend by vLLM's FlashAttention on the CPU. Before an engine is made."""
    for name, function in functions().items():
        setattr(flash_attn, name, function)
    register_backend(AttentionBackendEnum.CPU_ATTN, f"{__name__}.StandIn")


def grouped_attention(num_heads: int, num_kv_heads: int, head_size: int) -> GroupedAttention:
    """Attention in two passes, as vLLM makes it for a plain layer of a decoder."""
    attention = GroupedAttention.__new__(GroupedAttention)
    vars(attention).update(
        num_heads=num_heads, num_kv_heads=num_kv_heads, head_size=head_size, scale=head_size**-0.5,
        sliding_window=(-1, -1), alibi_slopes=None, logits_soft_cap=0, sinks=None, kv_cache_dtype="auto",
        attn_type="decoder", vllm_flash_attn_version=3, fa4_hd256=False, supports_quant_query_input=False,
    )  # fmt: skip
    return attention
