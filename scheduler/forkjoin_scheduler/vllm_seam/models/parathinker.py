"""ParaThinker's model: Qwen2's, plus a learned embedding of the token's path in its keys and values.

As in the published code (arXiv 2509.04475): each layer has a table ``self_attn.seg_embeddings`` with rows of
one head's size. The row of a token's path is added to K and V of each KV head, before the rotation. Row n
belongs to path n, its opening and end tags included. Row 0, which is learned too, belongs to the prompt and
the summary.

The tokens do not say which path they are in: a prompt may quote one. So the scheduler says it. ``path_ids``
holds the row of each token of the step; ``worker.PathIds`` writes it.

No GPU has run this, and no published weights.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.model_executor.models.qwen2 import Qwen2Attention, Qwen2ForCausalLM

from forkjoin_scheduler.vllm_seam.models.registering import NUM_ROWS


class PathAttention(Qwen2Attention):
    """Qwen2's attention, with path embeddings."""

    seg_embeddings: nn.Embedding
    path_ids: torch.Tensor

    def forward(self, positions: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        """As in Qwen2, but for ``rows``."""
        qkv, _ = self.qkv_proj(hidden_states)
        q, k, v = qkv.split([self.q_size, self.kv_size, self.kv_size], dim=-1)
        rows = self.seg_embeddings(self.path_ids[: hidden_states.shape[0]]).repeat(1, self.num_kv_heads)
        q, k = self.rotary_emb(positions, q, k + rows)
        output, _ = self.o_proj(self.attn(q, k, v + rows))
        return output


class ParaThinkerForCausalLM(Qwen2ForCausalLM):
    """Qwen2's model with path embeddings. Before each step, ``path_ids`` must hold the path of each token."""

    #: Where the embeddings are. A dialect asks for this attribute (``needs_model_attribute``).
    seg_embeddings: ClassVar[str] = "model.layers.*.self_attn.seg_embeddings"

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        num_tokens = vllm_config.scheduler_config.max_num_batched_tokens
        self.register_buffer("path_ids", torch.zeros(num_tokens, dtype=torch.long), persistent=False)
        for layer in self.model.layers:
            attention = layer.self_attn
            # Qwen2's layer makes its own attention, and vLLM refuses a second one of the same name.
            attention.__class__ = PathAttention
            attention.seg_embeddings = nn.Embedding(getattr(self.config, NUM_ROWS), attention.head_dim)
            attention.register_buffer("path_ids", self.path_ids, persistent=False)
