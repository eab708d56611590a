"""Mamba2 with prefix caching, on a CPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any


def end_steps_where_states_are_cached() -> None:
    """Let a step on a CPU end where the recurrent state is to be cached, and not export it from the middle.

    Patch: ``CPUModelRunner.get_kv_cache_spec`` -> no checkpoints inside a prefill.
    Symptom without it: ``IndexError`` in ``MambaMixer2.conv_ssm_forward`` ends the worker, and the server
    with it, at a prompt that goes past a block: its CPU kernel returns the last state alone.
    Upstream: so in stock ``vllm serve``, too. Remove when that kernel returns all states.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    original = CPUModelRunner.get_kv_cache_spec

    def get_kv_cache_spec(self: Any) -> dict[str, Any]:
        return without_checkpoints(original(self))

    setattr(CPUModelRunner, "get_kv_cache_spec", get_kv_cache_spec)  # noqa: B010


def without_checkpoints(specs: dict[str, Any]) -> dict[str, Any]:
    """The KV cache specs of layers, of which none exports its state from inside a prefill."""
    return {
        name: replace(spec, num_prefill_checkpoint_blocks=0, prefill_checkpoint_alignment=None)
        if getattr(spec, "num_prefill_checkpoint_blocks", 0)
        else spec
        for name, spec in specs.items()
    }
