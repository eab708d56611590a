"""Temperatures of requests that are drafted for, on a CPU."""

from __future__ import annotations

import torch


def spread_temperatures_over_drafts() -> None:
    """Let each draft of a request be judged at the temperature of the request, on a CPU.

    Patch: ``_expand_kernel_impl`` of ``vllm.utils.cpu_triton_utils``.
    Symptom without it: vLLM's own writes into a copy unless its output is of integers. So the temperatures of
    drafts, and their ``top_p``, are what the memory held before: drafted answers are not distributed as the
    others.
    Upstream: so in stock ``vllm serve``, too. Remove when its CPU kernel writes floats.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.utils import cpu_triton_utils

    setattr(cpu_triton_utils, "_expand_kernel_impl", _expand)  # noqa: B010


def _expand(
    output: torch.Tensor,
    values: torch.Tensor,
    ends: torch.Tensor,
    replace_from: float,
    replace_to: float,
    MAX_NUM_TOKENS: int | None = None,  # noqa: N803 - vLLM's name
) -> None:
    """Write each of ``values`` [batch] to ``output`` [num_tokens], up to its place in ``ends`` [batch]."""
    replaced = torch.where(values == replace_from, torch.full_like(values, replace_to), values)
    counts = torch.diff(ends, prepend=ends.new_zeros(1))
    output.copy_(torch.repeat_interleave(replaced, counts))
