"""What a model's config.json says of its KV cache: how many bytes a token takes. Reads no more than that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from forkjoin_scheduler.errors import UsageError

#: Bytes of a number in the KV cache, by vLLM's name of its type.
DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "half": 2, "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1}

#: Keys that only models with other layers than attention have, or with more than one kind of it.
_OTHER_STATE = (
    "attention_chunk_size",
    "attn_layer_period",
    "block_configs",
    "compress_ratios",
    "hybrid_override_pattern",
    "index_topk",
    "layers_block_type",
    "linear_num_value_heads",
    "mamba_d_state",
    "num_kv_shared_layers",
    "ssm_cfg",
    "state_size",
)
_ASK = "start a server with it, which logs the size of its KV cache"


@dataclass(frozen=True)
class KVLayout:
    """The KV of one token: ``num_vectors`` of ``head_size`` numbers for each head of each layer.

    Keys and values are two vectors; multi-head latent attention (MLA) has one, which all heads share.
    ``window``: tokens that each layer looks back, None for all.
    """

    num_layers: int
    num_heads: int
    head_size: int
    num_vectors: int = 2
    window: int | None = None

    @property
    def is_latent(self) -> bool:
        """Whether all heads share one vector."""
        return self.num_vectors == 1

    def bytes_per_token(self, dtype_bytes: int, num_gpus: int) -> int:
        """Bytes of one token on each of ``num_gpus`` with tensor parallelism.

        GPUs share the heads. With fewer heads than GPUs, each GPU has one head, and several hold the same.
        """
        num_heads = max(self.num_heads // num_gpus, 1)
        return self.num_layers * num_heads * self.num_vectors * self.head_size * dtype_bytes


def kv_layout(config: Mapping[str, Any]) -> KVLayout:
    """The layout of the model with this ``config``. Raises UsageError for one that can't be worked out."""
    text = config.get("text_config") or config
    if config.get("is_encoder_decoder"):
        raise UsageError(f"config.json: expected a decoder, got an encoder with a decoder: {_ASK}")
    if other := [key for key in _OTHER_STATE if text.get(key)]:
        raise UsageError(
            f"config.json: expected layers of one kind, with one state a token, got {other[0]}: {_ASK}"
        )
    num_layers, num_heads = _count(text, "num_hidden_layers"), _count(text, "num_attention_heads")
    if text.get("kv_lora_rank"):
        size = _count(text, "kv_lora_rank") + _count(text, "qk_rope_head_dim")
        return KVLayout(num_layers, 1, size, num_vectors=1)
    head_size = text.get("head_dim") or _count(text, "hidden_size") // num_heads
    if (of_values := text.get("v_head_dim", head_size)) != head_size:
        raise UsageError(
            f"config.json: expected keys and values of one size, got {head_size} and {of_values}: {_ASK}"
        )
    num_kv_heads = _count(text, "num_key_value_heads") if "num_key_value_heads" in text else num_heads
    return KVLayout(num_layers, num_kv_heads, head_size, window=_window(text))


def _window(text: Mapping[str, Any]) -> int | None:
    """How far back each layer looks. Raises UsageError where layers differ."""
    window: int | None = text.get("sliding_window") if text.get("use_sliding_window", True) else None
    kinds = set(text.get("layer_types") or ())
    if window and "use_sliding_window" in text and not kinds:
        raise UsageError(f"config.json: expected layer_types beside use_sliding_window, got none: {_ASK}")
    if not kinds:
        return window or None
    if kinds == {"full_attention"}:
        return None
    if kinds == {"sliding_attention"} and window:
        return window
    raise UsageError(
        f"config.json: expected layers that all look back equally far, got {', '.join(sorted(kinds))}: {_ASK}"
    )


def _count(text: Mapping[str, Any], key: str) -> int:
    value = text.get(key)
    if type(value) is not int or value < 1:
        raise UsageError(f"config.json: expected {key}: a number from 1 on, got {value!r}: {_ASK}")
    return value
