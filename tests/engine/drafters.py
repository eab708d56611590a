"""vLLM's drafters on the embedded model, with nothing but what this repository has.

Those that learn have weights that nobody trained: what they draft is wrong, but for chance, and so exercises
what becomes of drafts that are. ``draft_model`` has the model's own: all that it drafts is right.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from forkjoin_server.start.configuration import EMBEDDED_MODEL

#: Tokens that are drafted for a step.
NUM_DRAFTS = 4
#: What each drafter's ``config.json`` has that the embedded model's has not.
_HEADS: dict[str, dict[str, Any]] = {
    "eagle": {"num_hidden_layers": 1},
    # It reads three layers of the model; those that are vLLM's default are two in a model of four.
    "eagle3": {
        "num_hidden_layers": 1,
        "draft_vocab_size": 288,
        "eagle_aux_hidden_state_layer_ids": [1, 2, 3],
    },
}


def with_mtp(model: Path, folder: Path) -> Path:
    """``model`` in ``folder`` as a MiMo: that is Qwen2, whose biases are 0 here, and a module that drafts."""
    copy = Path(shutil.copytree(model, folder / "mimo"))
    config = json.loads((copy / "config.json").read_text())
    config |= {"model_type": "qwen2", "architectures": ["MiMoForCausalLM"], "num_nextn_predict_layers": 1}
    (copy / "config.json").write_text(json.dumps(config))
    weights = load_file(copy / "model.safetensors")
    biases = {
        name.removesuffix("weight") + "bias": torch.zeros(len(weight), dtype=weight.dtype)
        for name, weight in weights.items()
        if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight"))
    }
    save_file(weights | biases, copy / "model.safetensors")
    return copy


def drafter(method: str, folder: Path) -> dict[str, Any]:
    """vLLM's speculative config; ``folder`` is for what the method needs to be written.

    ``mtp`` drafts for a model that is ``with_mtp``.
    """
    config: dict[str, Any] = {"method": method, "num_speculative_tokens": NUM_DRAFTS}
    match method:
        case "ngram":
            return config | {"prompt_lookup_max": 4, "prompt_lookup_min": 2}
        case "suffix":
            sys.path.append(str(Path(__file__).parent / "stubs"))
            return config
        case "draft_model":
            return config | {"model": str(EMBEDDED_MODEL)}
        case "mtp":
            return config | {"draft_load_config": {"load_format": "dummy"}}
    head = json.loads((EMBEDDED_MODEL / "config.json").read_text()) | _HEADS[method]
    (folder / "config.json").write_text(json.dumps(head))
    return config | {"model": str(folder), "draft_load_config": {"load_format": "dummy"}}
