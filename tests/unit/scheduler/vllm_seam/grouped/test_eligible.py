"""What can't be grouped is known by name, and leaves vLLM's attention alone."""

from __future__ import annotations

from types import SimpleNamespace as Facts
from typing import Any

import pytest
from vllm.config import CUDAGraphMode
from vllm.v1.attention.backends.flash_attn import FlashAttentionImpl

from forkjoin_scheduler.vllm_seam.grouped import eligible


def _config(**changes: Any) -> Facts:
    parallel = {"pipeline_parallel_size": 1, "decode_context_parallel_size": 1}
    parallel |= {"prefill_context_parallel_size": 1, "use_ubatching": False}
    sections: dict[str, dict[str, Any]] = {
        "parallel_config": parallel,
        "model_config": {"rswa_window": None, "is_mm_prefix_lm": False},
        "compilation_config": {"cudagraph_mode": CUDAGraphMode.FULL_AND_PIECEWISE},
    }
    for name, value in changes.items():
        for section in sections.values():
            section |= {name: value} if name in section else {}
    return Facts(
        speculative_config=changes.get("speculative_config"),
        **{n: Facts(**facts) for n, facts in sections.items()},
    )


@pytest.mark.parametrize("mode", ["NONE", "PIECEWISE", "FULL_AND_PIECEWISE"])
def test_an_engine_with_graphs_in_pieces_or_none_may_group(mode):
    assert eligible.engine_reason(_config(cudagraph_mode=CUDAGraphMode[mode])) is None


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"speculative_config": Facts()}, "speculative"),
        ({"pipeline_parallel_size": 2}, "pipeline"),
        ({"decode_context_parallel_size": 2}, "context parallelism"),
        ({"prefill_context_parallel_size": 2}, "context parallelism"),
        ({"use_ubatching": True}, "--enable-dbo"),
        ({"rswa_window": 128}, "reference windows"),
        ({"is_mm_prefix_lm": True}, "both directions"),
        ({"cudagraph_mode": CUDAGraphMode.FULL}, "PIECEWISE"),
        ({"cudagraph_mode": CUDAGraphMode.FULL_DECODE_ONLY}, "PIECEWISE"),
    ],
)
def test_an_engine_that_may_not_is_told_why(changes, named):
    assert named in str(eligible.engine_reason(_config(**changes)))


def test_batch_invariance_leaves_attention_alone(monkeypatch):
    monkeypatch.setattr(eligible.envs, "VLLM_BATCH_INVARIANT", True, raising=False)
    assert eligible.engine_reason(_config()) == "VLLM_BATCH_INVARIANT"


@pytest.mark.parametrize(
    ("adapters", "versions", "named"),
    [(None, (3, 3), None), (Facts(), (3,), "LoRA"), (None, (3, 2), "version than 3")],
)
def test_graphs_of_whole_steps_have_groups_with_flash_attention_3_and_no_adapters(adapters, versions, named):
    impls = [_attention(vllm_flash_attn_version=version) for version in versions]
    reason = eligible.graphs_reason(Facts(lora_config=adapters), impls)
    assert reason is None if named is None else named in str(reason)


class _Other(FlashAttentionImpl):
    """Of another backend on top of vLLM's."""


def _attention(cls: type = FlashAttentionImpl, **changes: Any) -> Any:
    attention = cls.__new__(cls)
    plain = {"attn_type": "decoder", "sliding_window": (-1, -1), "sinks": None, "alibi_slopes": None}
    vars(attention).update(plain | {"kv_cache_dtype": "auto", "vllm_flash_attn_version": 3} | changes)
    return attention


@pytest.mark.parametrize("version", [2, 3])
def test_a_plain_layer_is_grouped(version):
    assert eligible.layer_reason(_attention(vllm_flash_attn_version=version)) is None


@pytest.mark.parametrize(
    ("attention", "named"),
    [
        (_attention(_Other), "another attention backend"),
        (_attention(attn_type="encoder_only"), "not a decoder"),
        (_attention(sliding_window=(127, 0)), "sliding windows"),
        (_attention(sinks=[0.0]), "sinks"),
        (_attention(alibi_slopes=[0.0]), "ALiBi"),
        (_attention(kv_cache_dtype="fp8"), "quantized"),
        (_attention(vllm_flash_attn_version=4), "2 and 3"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_any_other_layer_keeps_vllms_attention(attention, named):
    assert named in str(eligible.layer_reason(attention))
