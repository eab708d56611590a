"""What a worker compares at start, on a device that computes rightly, wrongly and not at all.

Graphs are recordings (``tests/engine/recorded_graph.py``).
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.v1.attention.backends import flash_attn

from forkjoin_scheduler.vllm_seam.grouped import check
from forkjoin_scheduler.vllm_seam.grouped.check import block_reason, graph_reason, largest_difference
from forkjoin_scheduler.vllm_seam.grouped.flash_attention import GroupedAttention, GroupedMetadataBuilder
from tests.engine import flash_attention as stand_in
from tests.engine.recorded_graph import RecordedGraph, captured


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


def test_a_device_that_computes_nothing_of_drafts_is_not(monkeypatch):
    def wrong(**more: Any) -> Any:
        out, lse = stand_in.attend(**more | {"return_softmax_lse": True})
        if not more["causal"] and more["max_seqlen_q"] > 3:  # three rows with three new tokens each
            out.fill_(float("nan"))
        return (out, lse) if more.get("return_softmax_lse") else out

    monkeypatch.setattr(flash_attn, "flash_attn_varlen_func", wrong)
    assert "off by nan" in str(block_reason(_builder(16), _layer(), _cache(16), 0))


def test_a_device_whose_kernel_refuses_is_not(monkeypatch):
    def refuse(**more: Any) -> Any:
        if not more["causal"]:
            raise RuntimeError("no kernel image")
        return stand_in.attend(**more)

    monkeypatch.setattr(flash_attn, "flash_attn_varlen_func", refuse)
    reason = block_reason(_builder(16), _layer(), _cache(16), 0)
    assert reason == "it failed on this device (RuntimeError: no kernel image)"


@pytest.fixture
def on_graphs(monkeypatch):
    """Has the check capture recordings; takes a kernel of attention."""

    def use(attend: Any) -> Any:
        monkeypatch.setattr(check, "captured", captured)
        kernel = RecordedGraph.kernel(attend)
        monkeypatch.setattr(flash_attn, "flash_attn_varlen_func", kernel)
        return _builder(16)

    return use


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_device_whose_graphs_compute_rightly_is_trusted_with_them(on_graphs, dtype):
    builder, cache = on_graphs(stand_in.attend_padded), _cache(16, dtype)
    assert graph_reason(builder, _layer(), cache) is None
    assert not cache.any()
    assert builder.for_graphs is None


def _unwritten(**more: Any) -> Any:
    """Leaves rows without keys as they are, as a kernel may that returns early."""
    starts, lengths = more["cu_seqlens_q"].tolist(), more["seqused_k"].tolist()
    before = more["out"].clone()
    out, lse = stand_in.attend_padded(**more | {"return_softmax_lse": True})
    for start, end, length in zip(starts[:-1], starts[1:], lengths, strict=True):
        if length == 0:
            out[start:end], lse[:, start:end] = before[start:end], float("nan")
    return (out, lse) if more.get("return_softmax_lse") else out


def _of_no_use(**more: Any) -> Any:
    """Says of rows without keys that they weigh something."""
    out, lse = stand_in.attend_padded(**more | {"return_softmax_lse": True})
    return (out, lse.nan_to_num(neginf=0.0)) if more.get("return_softmax_lse") else out


@pytest.mark.parametrize("kernel", [_unwritten, _of_no_use])
def test_a_kernel_that_takes_rows_without_keys_otherwise_is_not_trusted_with_graphs(on_graphs, kernel):
    assert "on this device, more than" in str(graph_reason(on_graphs(kernel), _layer(), _cache(16)))


def test_graphs_that_cannot_be_captured_are_no_reason_to_fail(on_graphs, monkeypatch):
    builder = on_graphs(stand_in.attend_padded)
    monkeypatch.setattr(check, "captured", lambda run: 1 / 0)
    assert "ZeroDivisionError" in str(graph_reason(builder, _layer(), _cache(16)))


def test_infinity_for_rows_without_keys_is_taken_as_flash_attention_2_means_it(on_graphs):
    def infinite(**more: Any) -> Any:
        out, lse = stand_in.attend_padded(**more | {"return_softmax_lse": True})
        lse = torch.where(lse == float("-inf"), float("inf"), lse)
        return (out, lse) if more.get("return_softmax_lse") else out

    assert graph_reason(on_graphs(infinite), _layer(), _cache(16)) is None
