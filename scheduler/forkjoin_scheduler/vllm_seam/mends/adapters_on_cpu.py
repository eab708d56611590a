"""LoRA on a CPU: tokens without an adapter, beside others that have one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

#: The kernels that add what an adapter makes of a token to what the model makes of it.
KERNELS = ("bgmv_expand", "bgmv_expand_slice")

Kernel = Callable[..., None]


def add_nothing_without_an_adapter() -> None:
    """Let a token without an adapter be what the model makes of it, on a CPU.

    Patch: ``bgmv_expand`` and ``bgmv_expand_slice`` of ``vllm.lora.ops.torch_ops.lora_ops``, and where
    ``punica_cpu`` has imported them.
    Symptom without it: in a step with adapters, a request without one is computed with the adapter in the
    last of the ``--max-loras`` places, if it is taken. vLLM says -1 for "none", and torch for "the last".
    Upstream: so in stock ``vllm serve``, too (vllm-project/vllm#48421). Since 0.33 its kernels look for -1:
    then nothing is patched. Remove with 0.32.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.lora.ops.torch_ops import lora_ops
    from vllm.lora.punica_wrapper import punica_cpu

    for name in KERNELS:
        kernel = getattr(lora_ops, name)
        if adds_the_last_adapter(kernel):
            for module in (lora_ops, punica_cpu):
                setattr(module, name, without_those_of_none(kernel))


def adds_the_last_adapter(kernel: Kernel) -> bool:
    """Whether ``kernel`` adds to a token without an adapter what the last one makes of it."""
    outputs, slices = torch.zeros(1, 1), (0, 1) if kernel.__name__.endswith("slice") else ()
    kernel(torch.ones(1, 1), torch.ones(1, 1, 1), outputs, torch.tensor([-1]), *slices, add_inputs=True)
    return bool(outputs.item())


def without_those_of_none(kernel: Kernel) -> Kernel:
    """``kernel`` for tokens of which some have no adapter: it adds zero to these.

    It takes the same: ``inputs`` [tokens, rank], the weights of all adapters [adapters, outputs, rank], the
    outputs [tokens, outputs], which it adds to, and the adapter of each token [tokens], of which -1 is none.
    """

    def masked(
        inputs: torch.Tensor, weights: torch.Tensor, outputs: torch.Tensor, adapters: torch.Tensor,
        *more: Any, **named: Any,
    ) -> None:  # fmt: skip
        kernel(inputs.masked_fill((adapters < 0).unsqueeze(1), 0), weights, outputs, adapters, *more, **named)

    masked.__name__ = kernel.__name__
    return masked
