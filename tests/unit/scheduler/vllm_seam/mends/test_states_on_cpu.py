"""Recurrent states on a CPU are cached where a step ends."""

from __future__ import annotations

import torch
from vllm.model_executor.layers.mamba.ops.cpu.mamba_ssm import _mamba_chunk_scan_combined_fwd_cpu
from vllm.v1.kv_cache_interface import FullAttentionSpec, MambaSpec

from forkjoin_scheduler.vllm_seam.mends.states_on_cpu import without_checkpoints

FULL = FullAttentionSpec(block_size=16, num_kv_heads=2, head_size=8, dtype=torch.float32)
PLAIN = MambaSpec(block_size=16, shapes=((8, 4),), dtypes=(torch.float32,), mamba_cache_mode="align")


def test_no_layer_exports_its_state_from_inside_a_prefill():
    exporting = MambaSpec(
        block_size=16, shapes=((8, 4),), dtypes=(torch.float32,), mamba_cache_mode="align",
        num_prefill_checkpoint_blocks=1, prefill_checkpoint_alignment=1,
    )  # fmt: skip
    assert without_checkpoints({"a": exporting, "b": PLAIN, "c": FULL}) == {"a": PLAIN, "b": PLAIN, "c": FULL}


def test_the_kernel_still_returns_the_last_state_alone():
    """Where it returns one of each chunk, here of two, the patch can go."""
    x, dt, b = torch.ones(4, 1, 16), torch.ones(4, 1), torch.ones(4, 1, 16)
    states = _mamba_chunk_scan_combined_fwd_cpu(
        x, dt, -torch.ones(1), b, b, 2, torch.empty_like(x), cu_seqlens=torch.tensor([0, 4]),
        last_chunk_indices=torch.tensor([1]), return_intermediate_states=True,
    )  # fmt: skip
    assert len(states) == 1
