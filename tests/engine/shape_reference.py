"""What a small model of any shape says by transformers, in the precision in which the engine keeps KV."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM

from tests.engine import stitched_reference
from tests.engine.adapters import merge

FP8 = {"fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}


def _kept(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What a cache of ``dtype`` keeps of ``values``: vLLM's CPU kernels round towards zero."""
    kept = values.to(dtype)
    too_far = kept.float().abs() > values.abs()
    return (kept.view(torch.uint8) - too_far.to(torch.uint8)).view(dtype).to(values.dtype)


def _attention(dtype: torch.dtype | None) -> Any:
    """Attention written out; keys and values are rounded to ``dtype``, as a cache of it rounds them."""

    def attend(module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float, **_: Any) -> Any:
        if dtype is not None:
            key, value = _kept(key, dtype), _kept(value, dtype)
        key, value = (t.repeat_interleave(module.num_key_value_groups, dim=1) for t in (key, value))
        scores = query @ key.transpose(2, 3) * scaling + mask[..., : key.shape[-2]]
        return (scores.softmax(-1) @ value).transpose(1, 2).contiguous(), None

    return attend


def _inputs_in_int8(module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> torch.Tensor:
    """What W8A8 makes of the inputs of a projection: those of each token in int8, by a scale of their own."""
    scale = inputs[0].abs().amax(-1, keepdim=True) / 127
    return (inputs[0] / scale).round() * scale


def _w8a8(folder: Path, dtype: torch.dtype) -> Any:
    """The checkpoint with the weights that its numbers stand for; what is not quantised is rounded to ``dtype``."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    del config.quantization_config
    model: Any = AutoModelForCausalLM.from_config(config, attn_implementation="written_out").float()
    kept, weights = load_file(folder / "model.safetensors"), {}
    for name, weight in kept.items():
        if not name.endswith("_scale"):
            scale = kept.get(f"{name}_scale")
            weights[name] = weight.to(dtype).float() if scale is None else weight.float() * scale
    model.load_state_dict(weights)
    for name, module in model.named_modules():
        if f"{name}.weight_scale" in kept:
            module.register_forward_pre_hook(_inputs_in_int8)
    return model


class ShapeReference:
    """The checkpoint in ``folder`` in transformers, with explicit positions and masks.

    It computes in fp32, with weights as the engine has them: rounded, if that computes in bf16, or quantised (W8A8).
    ``adapter``: the folder of a LoRA adapter that is added to them.
    """

    def __init__(self, folder: Path, engine: Any, adapter: Path | None = None) -> None:
        config = engine.core.vllm_config
        dtype = config.model_config.dtype
        AttentionInterface.register("written_out", _attention(FP8.get(config.cache_config.cache_dtype)))
        if config.model_config.quantization:
            model = _w8a8(folder, dtype)
        else:
            model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, attn_implementation="written_out", local_files_only=True
            )
        self._model: Any = model.float().eval()
        if adapter is not None:
            merge(self._model, adapter)

    def logprobs(self, context: list[Any], **wrong: bool) -> torch.Tensor:
        """What the model says after each slot of ``context``."""
        return stitched_reference.logprobs(self._model, context, **wrong)
