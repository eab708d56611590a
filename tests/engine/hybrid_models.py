"""Small random models of the hybrid shapes: layers that keep a recurrent state, beside full attention.

Each is a checkpoint as its family publishes it, with the embedded model's tokenizer. Weights are large, so that a
wrong state shows. A model never chooses a tag, so that answers can be read.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.engine.renamed import with_tokens

#: What all of them are of.
_COMMON = {
    "hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 4096, "tie_word_embeddings": False, "initializer_range": 0.1,
    "bos_token_id": None, "eos_token_id": 257, "pad_token_id": 256,
}  # fmt: skip
_MAMBA2 = {
    "mamba_n_heads": 8,
    "mamba_d_head": 32,
    "mamba_d_state": 16,
    "mamba_expand": 2,
    "mamba_n_groups": 1,
}


@dataclass(frozen=True)
class Hybrid:
    """A kind of model: its name in transformers, what its config says beside ``_COMMON``, and the engine's options."""

    family: str
    config: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


HYBRIDS = {
    # Mamba2: Granite 4, Nemotron-H, Bamba
    "granite_hybrid": Hybrid(
        "GraniteMoeHybrid",
        _MAMBA2
        | {"num_hidden_layers": 2, "layer_types": ["mamba", "attention"], "num_local_experts": 0}
        | {"shared_intermediate_size": 128, "position_embedding_type": "rope"},
    ),
}


def build(name: str, folder: Path) -> Path:
    """The checkpoint ``name`` of ``HYBRIDS``, in ``folder``."""
    hybrid = HYBRIDS[name]
    model = with_tokens(folder, {})
    tags = [token["id"] for token in json.loads((model / "tokenizer.json").read_text())["added_tokens"]]
    vocabulary = json.loads((model / "config.json").read_text())["vocab_size"]
    torch.manual_seed(0)
    config = getattr(transformers, f"{hybrid.family}Config")(
        **_COMMON | {"vocab_size": vocabulary} | hybrid.config
    )
    built = getattr(transformers, f"{hybrid.family}ForCausalLM")(config).float()
    with torch.no_grad():
        built.lm_head.weight[tags] = 0
    built.save_pretrained(model)
    return model


def engine_of(name: str, new_folder: Callable[[str], Path], **options: Any) -> Any:
    """An engine on the model ``name``."""
    from tests.engine.harness import Engine

    defaults = {"max_model_len": 1024, "num_gpu_blocks_override": 400, "max_num_batched_tokens": 256}
    return Engine(model=build(name, new_folder(name)), **defaults | HYBRIDS[name].options | options)
