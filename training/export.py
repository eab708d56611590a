"""Write the trained weights as a Hugging Face folder that vLLM and transformers load."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file

from training import tokenizer as tok
from training.model import Llama


def export(model: Llama, folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write ``config.json``, ``model.safetensors`` and the tokenizer of ``model`` to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {_name(name): value.to(dtype) for name, value in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    tok.save(folder)
    tokenizer = tok.build()
    config = asdict(model.config) | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_key_value_heads": model.config.num_attention_heads,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "bos_token_id": None,
        "eos_token_id": tokenizer.token_to_id(tok.EOS),
        "pad_token_id": tokenizer.token_to_id(tok.PAD),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _name(name: str) -> str:
    return name if name.startswith("lm_head") else f"model.{name}"
