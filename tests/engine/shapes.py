"""Small random models of the shapes that people serve: windows, latent KV, experts, quantised weights.

Each is a checkpoint as its family is published, with the embedded model's tokenizer and ParaThinker's tags. Weights
are large, so that a token that is left out of a context shows. A model never chooses a tag, so that answers can be
read.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.engine.renamed import PARATHINKER, with_tokens

WINDOW, CONTEXT = 64, 512
Tensors = dict[str, torch.Tensor]

COMMON = {
    "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 4096, "initializer_range": 0.2,
    "tie_word_embeddings": False, "bos_token_id": None, "eos_token_id": 257, "pad_token_id": 256,
}  # fmt: skip
MIXED = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": WINDOW}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
#: A token goes to all experts: in bf16, where rounding differs, it would else go to others.
LATENT = {
    "kv_lora_rank": 512, "q_lora_rank": 64, "qk_nope_head_dim": 32, "qk_rope_head_dim": 64, "v_head_dim": 32,
    "n_routed_experts": 2, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 64,
    "topk_method": "noaux_tc", "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "head_dim": 64,
    "num_key_value_heads": 4, "initializer_range": 0.1,
}  # fmt: skip
#: Heads of 64: of 32 vLLM's kernel for CPUs has none. A token goes to all experts here, too.
DELTA = {
    "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 1, "linear_num_value_heads": 1,
    "linear_key_head_dim": 64, "linear_value_head_dim": 64, "mlp_only_layers": [0], "num_experts": 2,
    "num_experts_per_tok": 2, "moe_intermediate_size": 64, "shared_expert_intermediate_size": 64,
}  # fmt: skip
#: vLLM reads keys of the published configs that transformers has renamed, and ties the embeddings.
CONVOLVED = {
    "layer_types": ["conv", "full_attention"], "conv_L_cache": 3, "conv_dim": 128, "conv_bias": False,
    "block_dim": 128, "block_ff_dim": 192, "block_multiple_of": 1, "block_ffn_dim_multiplier": 1.0,
    "block_auto_adjust_ff_dim": False, "tie_word_embeddings": True,
    # Gemma's engine has rotations of the same parameters but this, and all engines of a process share those.
    "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
}  # fmt: skip


# ---- quantised weights ------------------------------------------------------------------------


def int8(weight: torch.Tensor) -> Tensors:
    """As compressed-tensors has W8A8: a scale for each output, inputs scaled by token while it runs.

    Up to 63: of larger numbers oneDNN's kernels for CPUs without VNNI cut sums off (``test_cpu_kernels``).
    """
    scale = weight.abs().amax(1, keepdim=True) / 63
    return {"weight": (weight / scale).round().to(torch.int8), "weight_scale": scale}


def _packed(numbers: torch.Tensor, order: list[int]) -> torch.Tensor:
    """Eight numbers of four bits in each int32, along the last axis, in ``order``."""
    nibbles = numbers.long().unflatten(-1, (-1, 8))[..., order] << torch.arange(0, 32, 4)
    packed = nibbles.sum(-1)
    return torch.where(packed >= 2**31, packed - 2**32, packed).int()


GROUP = 32


def _int4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers of 0 to 15, of which 8 is zero, [inputs, outputs], and their scales [groups, outputs]."""
    groups = weight.T.unflatten(0, (-1, GROUP))
    scales = groups.abs().amax(1) / 7
    return ((groups / scales[:, None]).round() + 8).clamp(0, 15).flatten(0, 1), scales


def awq(weight: torch.Tensor) -> Tensors:
    """As AutoAWQ packs: outputs of a group of eight in an order of its own."""
    numbers, scales = _int4(weight)
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    zeros = torch.full_like(scales, 8)
    return {"qweight": _packed(numbers, order), "qzeros": _packed(zeros, order), "scales": scales}


def gptq(weight: torch.Tensor) -> Tensors:
    """As GPTQ packs: inputs in a row, and zeros less one."""
    numbers, scales = _int4(weight)
    row = list(range(8))
    zeros = torch.full_like(scales, 7)
    g_idx = torch.arange(len(numbers), dtype=torch.int32) // GROUP
    qweight = _packed(numbers.T, row).T.contiguous()
    return {"qweight": qweight, "qzeros": _packed(zeros, row), "scales": scales, "g_idx": g_idx}


_W8A8 = {
    "quant_method": "compressed-tensors", "format": "int-quantized", "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {"group_0": {
        "targets": ["Linear"],
        "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False},
        "input_activations": {
            "num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True,
        },
    }},
}  # fmt: skip
_AWQ = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}
_GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": True}

# ---- the shapes ---------------------------------------------------------------------------------


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
    #: What MLA's queries are multiplied by: large scores are further off in bf16 than what is wrong.
    queries: float = 1.0
    quantization: dict[str, Any] = field(default_factory=dict)
    quantize: Callable[[torch.Tensor], Tensors] | None = None


BF16 = {"dtype": "bfloat16"}
#: vLLM's own kernel for CPUs, used without compilation, rotates wrongly what comes with a dimension of heads
#: (``test_cpu_kernels``): the queries and keys of MLA and LFM2.
ROTATED = {"compilation_config": {"custom_ops": ["all", "-rotary_embedding"]}}
SHAPES = {
    "llama": Shape("Llama"),
    "mistral": Shape("Mistral", {"sliding_window": 2 * WINDOW}),
    "window": Shape("Mistral", {"sliding_window": CONTEXT}),
    "gemma": Shape("Gemma3", {**MIXED, "query_pre_attn_scalar": 32}),
    "gemma_window": Shape(
        "Gemma3",
        {**MIXED, "sliding_window": CONTEXT, "query_pre_attn_scalar": 32},
        {"disable_hybrid_kv_cache_manager": True},
    ),
    "gpt_oss": Shape("GptOss", {**MIXED, **EXPERTS}),
    "moe": Shape("Qwen3Moe", EXPERTS),
    "gdn": Shape("Qwen3Next", DELTA, BF16, nats=0.15),
    "mla": Shape("DeepseekV3", LATENT, {**BF16, "block_size": 32}, nats=0.3, queries=0.1),
    "mla_native": Shape("DeepseekV3", LATENT, {**BF16, **ROTATED, "block_size": 32}, nats=0.2),
    "lfm2": Shape("Lfm2", CONVOLVED, ROTATED),
    "w8a8_fp32": Shape("Llama", nats=0.1, quantization=_W8A8, quantize=int8),
    "w8a8": Shape("Llama", options=BF16, nats=0.5, quantization=_W8A8, quantize=int8),
    "awq": Shape("Llama", options=BF16, nats=0.5, quantization=_AWQ, quantize=awq),
    "gptq": Shape("Llama", options=BF16, nats=0.5, quantization=_GPTQ, quantize=gptq),
    "fp8_kv": Shape("Llama", options={"kv_cache_dtype": "fp8_e4m3"}, nats=0.2),
}  # fmt: skip


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
    for name, weight in random.named_parameters():
        if "q_b_proj" in name:
            weight.data *= shape.queries
    random.save_pretrained(model)
    if shape.quantize is not None:
        _quantize(model, shape.quantize, shape.quantization)
    return model


def _quantize(model: Path, quantize: Callable[[torch.Tensor], Tensors], how: dict[str, Any]) -> None:
    weights = {}
    for name, weight in load_file(model / "model.safetensors").items():
        module = name.removesuffix(".weight")
        parts = quantize(weight) if module.endswith("_proj") else {"weight": weight}
        weights |= {f"{module}.{part}": tensor.contiguous() for part, tensor in parts.items()}
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"quantization_config": how}))
