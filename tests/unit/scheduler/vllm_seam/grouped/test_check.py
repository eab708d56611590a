"""What a worker compares at start, on a device that computes rightly, wrongly and not at all."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.v1.attention.backends import flash_attn

from forkjoin_scheduler.vllm_seam.grouped.check import block_reason, largest_difference
from forkjoin_scheduler.vllm_seam.grouped.flash_attention import GroupedAttention, GroupedMetadataBuilder
from tests.engine import flash_attention as stand_in


@pytest.fixture(autouse=True)
def _on_a_cpu(monkeypatch):
    for name, function in stand_in.functions().items():
        monkeypatch.setattr(flash_attn, name, function, raising=False)


def _builder(block_size: int) -> Any:
    builder = GroupedMetadataBuilder.__new__(GroupedMetadataBuilder)
    vars(builder).update(
        block_size=block_size, device=torch.device("cpu"), aot_schedule=False, aot_sliding_window=(-1, -1),
        use_full_cuda_graph=False, max_cudagraph_size=None, dcp_world_size=1, rswa_window=None,
        mm_prefix_query_ranges_np=None,
    )  # fmt: skip
    return builder


def _layer() -> Any:
    attention = GroupedAttention.__new__(GroupedAttention)
    vars(attention).update(
        num_heads=4, num_kv_heads=2, head_size=16, scale=0.25, sliding_window=(-1, -1), alibi_slopes=None,
        logits_soft_cap=0, sinks=None, kv_cache_dtype="auto", attn_type="decoder", fa4_hd256=False,
        vllm_flash_attn_version=3, supports_quant_query_input=False,
    )  # fmt: skip
    scale = torch.ones(())
    return SimpleNamespace(impl=attention, _q_scale=scale, _k_scale=scale, _v_scale=scale)


def _cache(block_size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(40, 2, block_size, 32, dtype=dtype)


@pytest.mark.parametrize("block_size", [16, 32, 64])
def test_a_device_that_computes_rightly_is_trusted(block_size):
    cache = _cache(block_size)
    assert largest_difference(_builder(block_size), _layer(), cache, 0) < 1e-5
    assert block_reason(_builder(block_size), _layer(), cache, 0) is None
    assert not cache.any(), "the engine's own cache is not written"


def test_rounding_of_16_bits_is_no_reason():
    assert block_reason(_builder(16), _layer(), _cache(16, torch.bfloat16), 0) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fault", ["a block unread", "sums swapped", "a wrong block"])
def test_a_device_that_computes_wrongly_is_not(monkeypatch, fault, dtype):
    def wrong(**more: Any) -> Any:
        if more["causal"]:
            return stand_in.attend(**more)
        if fault == "a block unread":
            more["seqused_k"] = (more["seqused_k"] - 16).clamp(min=1)
        elif fault == "a wrong block":
            more["block_table"] = more["block_table"].flip(0)
        out, lse = stand_in.attend(**more)
        return out, lse.flip(1) if fault == "sums swapped" else lse

    monkeypatch.setattr(flash_attn, "flash_attn_varlen_func", wrong)
    reason = block_reason(_builder(16), _layer(), _cache(16, dtype), 0)
    assert reason is not None
    assert "on this device, more than" in reason


def test_a_device_whose_kernel_refuses_is_not(monkeypatch):
    def refuse(**more: Any) -> Any:
        if not more["causal"]:
            raise RuntimeError("no kernel image")
        return stand_in.attend(**more)

    monkeypatch.setattr(flash_attn, "flash_attn_varlen_func", refuse)
    reason = block_reason(_builder(16), _layer(), _cache(16), 0)
    assert reason == "it failed on this device (RuntimeError: no kernel image)"
