"""The models that are measured, each a folder whose tokenizer has ThreadWeaver's tags."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from forkjoin_bench.inputs.smollm2 import SmolLM2Unavailable, model_folder
from forkjoin_scheduler.errors import UsageError
from forkjoin_server.start.configuration import EMBEDDED_MODEL

#: SmolLM2 keeps these for code; here they are ThreadWeaver's tags.
SMOLLM2_TAGS = {
    "<repo_name>": "<Parallel>",
    "<reponame>": "</Parallel>",
    "<file_sep>": "<Outlines>",
    "<filename>": "</Outlines>",
    "<issue_start>": "<Outline>",
    "<issue_comment>": "</Outline>",
    "<jupyter_start>": "<Thread>",
    "<jupyter_text>": "</Thread>",
}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")

#: What https://huggingface.co/Qwen/Qwen3-0.6B's config.json says, as far as it decides what a step costs.
QWEN3_SHAPE = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "attention_bias": False,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "vocab_size": 151936,
    # The embedded model's, whose tokenizer it has.
    "bos_token_id": None,
    "eos_token_id": 257,
    "pad_token_id": 256,
}


@dataclass(frozen=True)
class Model:
    """A folder to serve, and the flags that it needs."""

    name: str
    folder: Path
    flags: tuple[str, ...] = ()

    @property
    def kv_token_bytes(self) -> int:
        """Bytes of KV cache that a token takes, in 16 bits, or 32 with ``--dtype float32``."""
        config = json.loads((self.folder / "config.json").read_text())
        heads = config["num_key_value_heads"] * config["head_dim"]
        return int(config["num_hidden_layers"] * heads) * 2 * (4 if "float32" in self.flags else 2)


def make_model(name: str, scratch: Path, dtype: str = "auto") -> Model:
    """The model called ``name``; what has to be written is written below ``scratch``."""
    model = MODELS[name](scratch / "models")
    return model if dtype == "auto" else replace(model, flags=(*model.flags, "--dtype", dtype))


def _embedded(scratch: Path) -> Model:
    return Model("embedded", EMBEDDED_MODEL)


def _smollm2(scratch: Path) -> Model:
    """SmolLM2-135M-Instruct, some of its unused tokens renamed."""
    try:
        source = model_folder()
    except SmolLM2Unavailable as error:
        raise UsageError(f"--model smollm2: {error}") from error
    folder = scratch / "smollm2"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path in source.iterdir():
        (folder / path.name).symlink_to(path)
    text = (source / "tokenizer.json").read_text(encoding="utf-8")
    for own, tag in SMOLLM2_TAGS.items():
        assert f'"{own}"' in text, f"SmolLM2's tokenizer has no {own}"
        text = text.replace(f'"{own}"', f'"{tag}"')
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    return Model("smollm2", folder)


def _qwen3(scratch: Path) -> Model:
    """Qwen3-0.6B's shape with random weights: for what its steps cost, not for what it says."""
    folder = scratch / "qwen3-0.6b-shape"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in TOKENIZER_FILES:
        shutil.copy(EMBEDDED_MODEL / name, folder)
    (folder / "config.json").write_text(json.dumps(QWEN3_SHAPE, indent=2) + "\n")
    return Model("qwen3-0.6b-shape", folder, ("--load-format", "dummy"))


MODELS: dict[str, Callable[[Path], Model]] = {
    "embedded": _embedded,
    "smollm2": _smollm2,
    "qwen3-0.6b-shape": _qwen3,
}
