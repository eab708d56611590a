"""Batched greedy decoding of the small model, in plain torch.

Rows of different lengths share one cache, right-padded: a row's padding lies behind its own
position, where the mask hides it until the row's next tokens overwrite it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from training.model import Attention, Llama, rotary


class Decoder:
    """Greedy decoding with ``model``, whose dtype it computes in."""

    def __init__(self, model: Llama) -> None:
        self.model = model
        self.cos, self.sin = rotary(model.config, model.config.max_position_embeddings)

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def generate(
        self, prompts: Sequence[list[int]], stop_ids: frozenset[int], max_tokens: int
    ) -> list[list[int]]:
        """What follows each of ``prompts``: up to a stop id, included, or ``max_tokens`` ids."""
        config = self.model.config
        lengths = torch.tensor([len(p) for p in prompts])
        longest = int(lengths.max())
        capacity = min(longest + max_tokens, config.max_position_embeddings)
        shape = (len(prompts), config.num_attention_heads, capacity, config.head_dim)
        dtype = self.model.lm_head.weight.dtype
        cache = [
            (torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype))
            for _ in range(config.num_hidden_layers)
        ]
        ids = torch.zeros(len(prompts), longest, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = torch.tensor(prompt)
        positions = torch.arange(longest).expand(len(prompts), longest)
        hidden = self._forward(ids, positions, cache)
        last = hidden[torch.arange(len(prompts)), lengths - 1]
        outputs: list[list[int]] = [[] for _ in prompts]
        rows = torch.arange(len(prompts))
        while len(rows):
            tokens = self.model.lm_head(last).argmax(-1)
            keep = []
            for i, (row, token) in enumerate(zip(rows.tolist(), tokens.tolist(), strict=True)):
                outputs[row].append(token)
                full = len(outputs[row]) >= max_tokens or int(lengths[i]) >= capacity
                if token not in stop_ids and not full:
                    keep.append(i)
            if len(keep) < len(rows):
                rows, lengths, tokens = rows[keep], lengths[keep], tokens[keep]
                cache = [(k[keep], v[keep]) for k, v in cache]
            if len(rows):
                last = self._forward(tokens[:, None], lengths[:, None], cache)[:, 0]
                lengths = lengths + 1
        return outputs

    def _forward(self, ids: Tensor, positions: Tensor, cache: list[tuple[Tensor, Tensor]]) -> Tensor:
        end = int(positions.max()) + 1
        cos, sin = self.cos[positions][:, None], self.sin[positions][:, None]
        visible = torch.arange(end) <= positions[:, None, :, None]
        x = self.model.embed_tokens(ids)
        for layer, (keys, values) in zip(self.model.layers, cache, strict=True):
            normed = layer.input_layernorm(x)
            x = x + _attend(layer.self_attn, normed, positions, (cos, sin), visible, keys, values)
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        out: Tensor = self.model.norm(x)
        return out


def _attend(
    attention: Attention,
    x: Tensor,
    positions: Tensor,
    rotation: tuple[Tensor, Tensor],
    visible: Tensor,
    keys: Tensor,
    values: Tensor,
) -> Tensor:
    """Attention over the cache up to the last position; writes this step's keys and values."""
    batch, length, _ = x.shape
    q, k, v = (
        proj(x).view(batch, length, attention.heads, attention.head_dim).transpose(1, 2)
        for proj in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    where = positions[:, None, :, None].expand_as(k)
    keys.scatter_(2, where, _rotate(k, *rotation))
    values.scatter_(2, where, v)
    end = visible.shape[-1]
    out = functional.scaled_dot_product_attention(
        _rotate(q, *rotation), keys[:, :, :end], values[:, :, :end], attn_mask=visible
    )
    projected: Tensor = attention.o_proj(out.transpose(1, 2).reshape(batch, length, -1))
    return projected


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)
