"""What measures attention computes it, in two passes as in one."""

from __future__ import annotations

import pytest
import torch
from vllm.v1.attention.backends import flash_attn

from forkjoin_bench.grouped import command
from forkjoin_bench.grouped.estimate import Geometry, Load, estimate
from forkjoin_bench.vllm_seam.grouped_attention import measure
from forkjoin_scheduler.errors import UsageError
from tests.engine import flash_attention as stand_in

GEOMETRY = Geometry(num_layers=2, num_heads=4, num_kv_heads=2, head_size=16)
LOAD = Load(2, 3, 40, suffix=9)


def test_what_is_measured_in_two_passes_is_attention(monkeypatch):
    for name, function in stand_in.functions().items():
        monkeypatch.setattr(flash_attn, name, function, raising=False)
    measured = measure(LOAD, GEOMETRY, "cpu", torch.float32, num_rounds=1)
    assert measured is not None
    assert measured.off_by < 1e-5
    (_, _, line) = command.markdown([(LOAD, estimate(LOAD, GEOMETRY), measured)], GEOMETRY).splitlines()
    assert line.count("|") == 1 + len((*command.READ, *command.EXPECTED, *command.MEASURED))


def test_a_gpu_without_flash_attention_is_told(monkeypatch):
    monkeypatch.setattr(flash_attn, "get_flash_attn_version", lambda **_: None)
    with pytest.raises(UsageError, match="FlashAttention"):
        measure(LOAD, GEOMETRY, "cpu", torch.float32, num_rounds=1)
