"""Random LoRA adapters for a model, each with its own weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from vllm.lora.request import LoRARequest

RANK = 8
#: What projections of attention take and give, as keys of a model's sizes.
_SHAPES = {
    "q": ("hidden", "queries"),
    "k": ("hidden", "keys"),
    "v": ("hidden", "keys"),
    "o": ("queries", "hidden"),
}


def adapter(
    number: int, folder: Path, model: Path, *, projections: Sequence[str] = "q", scale: float = 0.02
) -> LoRARequest:
    """Write the adapter ``number``, from 1, of ``projections`` of the ``model`` into ``folder``, which is made."""
    config = json.loads((model / "config.json").read_text())
    generator = torch.Generator().manual_seed(2 + number)
    size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    sizes = {
        "hidden": config["hidden_size"],
        "queries": config["num_attention_heads"] * size,
        "keys": config["num_key_value_heads"] * size,
    }
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        for projection in projections:
            num_in, num_out = (sizes[name] for name in _SHAPES[projection])
            name = f"base_model.model.model.layers.{layer}.self_attn.{projection}_proj"
            tensors[f"{name}.lora_A.weight"] = torch.randn(RANK, num_in, generator=generator)
            tensors[f"{name}.lora_B.weight"] = torch.randn(num_out, RANK, generator=generator) * scale
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    about = {
        "peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "bias": "none",
        "target_modules": [f"{projection}_proj" for projection in projections],
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(about))
    return LoRARequest(f"adapter{number}", number, str(folder))


def merge(model: Any, folder: Path) -> None:
    """Add the adapter in ``folder`` to the weights of a ``model`` of transformers'."""
    tensors = load_file(folder / "adapter_model.safetensors")
    for name, down in tensors.items():
        prefix, is_down, _ = name.rpartition(".lora_A.weight")
        if is_down:
            module = model.get_submodule(prefix.removeprefix("base_model.model."))
            module.weight.data += tensors[f"{prefix}.lora_B.weight"] @ down
