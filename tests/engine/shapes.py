"""Small random models of the shapes that people serve, such as windows.

Each is a checkpoint as its family is published, with the embedded model's tokenizer and ParaThinker's tags. Weights
are large, so that a token that is left out of a context shows. A model never chooses a tag, so that answers can be
read.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.engine.renamed import PARATHINKER, with_tokens

WINDOW, CONTEXT = 64, 512

COMMON = {
    "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 4096, "initializer_range": 0.2,
    "tie_word_embeddings": False, "bos_token_id": None, "eos_token_id": 257, "pad_token_id": 256,
}  # fmt: skip
MIXED = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": WINDOW}


@dataclass(frozen=True)
class Shape:
    """How the small model of a family (``shape_table.TITLES``) is built, and served."""

    #: Its class in transformers, without ``Config`` or ``ForCausalLM``.
    name: str
    #: What its config says beside ``COMMON``.
    config: dict[str, Any] = field(default_factory=dict)
    #: Of the engine.
    options: dict[str, Any] = field(default_factory=dict)
    #: What rounding may move a logprob by: the engine computes a context in other parts than its reference.
    nats: float = 1e-3


SHAPES = {
    "llama": Shape("Llama"),
    "gemma": Shape("Gemma3", {**MIXED, "query_pre_attn_scalar": 32}),
    "fp8_kv": Shape("Llama", options={"kv_cache_dtype": "fp8_e4m3"}, nats=0.2),
}


def checkpoint(shape: Shape, folder: Path) -> Path:
    """A small model of this shape in ``folder``."""
    model = with_tokens(folder, PARATHINKER)
    tags = [token["id"] for token in json.loads((model / "tokenizer.json").read_text())["added_tokens"]]
    vocabulary = json.loads((model / "config.json").read_text())["vocab_size"]
    torch.manual_seed(0)
    config_class = getattr(transformers, f"{shape.name}TextConfig", None)
    config_class = config_class or getattr(transformers, f"{shape.name}Config")
    config = config_class(**{**COMMON, "vocab_size": vocabulary, **shape.config})
    random = getattr(transformers, f"{shape.name}ForCausalLM")(config)
    random.lm_head.weight.data[tags] = 0
    random.save_pretrained(model)
    return model
