"""vLLM's FlashAttention in two passes, for the steps whose metadata have groups; for others it is vLLM's own.

In a CUDA graph of a whole step both passes read buffers that stay (``graph_passes.py``). Each step writes
them.

Instances of vLLM's classes are made instances of these where a layer can be grouped (``runner.py``): nothing
is registered, and layers that can't be grouped keep vLLM's.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.utils.torch_utils import async_tensor_h2d, canonicalize_singleton_dim_strides
from vllm.v1.attention.backends import flash_attn

from forkjoin_scheduler.tensors.two_passes import HostPlan, Pass, StepGroups, TwoPasses, split
from forkjoin_scheduler.vllm_seam.grouped.graph_passes import GraphPasses, Scheduled

_PASSES = "forkjoin_passes"


class GroupedMetadataBuilder(flash_attn.FlashAttentionMetadataBuilder):
    """Adds the two passes to vLLM's metadata, which stay as they are for layers that are not grouped."""

    #: What graphs of whole steps read; None where none has two passes in it.
    for_graphs: GraphPasses | None = None

    def build(
        self,
        common_prefix_len: int,
        common_attn_metadata: Any,
        fast_build: bool = False,
        groups: StepGroups | None = None,
        *,
        for_graph: bool = False,
    ) -> Any:
        """``for_graph``: a graph with two passes runs the step, or is captured, groups or none."""
        metadata = super().build(common_prefix_len, common_attn_metadata, fast_build)
        if for_graph:
            scheduled = self._fill(groups, common_attn_metadata, metadata.max_num_splits)
            setattr(metadata, _PASSES, scheduled)
        elif groups is not None and common_prefix_len == 0 and metadata.causal is True:
            passes = self._two_passes(groups, common_attn_metadata)
            setattr(metadata, _PASSES, self._schedule(passes, metadata.max_num_splits, fast_build))
        return metadata

    def build_for_cudagraph_capture(self, common_attn_metadata: Any) -> Any:
        if self.for_graphs is None or not self.for_graphs.step.is_captured:
            return super().build_for_cudagraph_capture(common_attn_metadata)
        return self.build(0, common_attn_metadata, for_graph=True)

    def _fill(self, groups: StepGroups | None, common: Any, max_num_splits: int) -> Scheduled:
        """Let the buffers of graphs say what this step's ``groups`` are."""
        assert self.for_graphs is not None
        groups = (groups or StepGroups.none(common.max_query_len)).padded(common.num_reqs)
        fixed = self.for_graphs.refill(self._two_passes(groups, common))
        return self.for_graphs.keep(self._schedule(fixed, max_num_splits, fast_build=False))

    @staticmethod
    def has_passes(metadata: Any) -> bool:
        """Whether attention with these metadata is computed in two passes."""
        return hasattr(metadata, _PASSES)

    def _two_passes(self, groups: StepGroups, common: Any) -> TwoPasses:
        longest = common.seq_lens_cpu_upper_bound[: common.num_reqs].numpy()
        plan = HostPlan.of(groups, longest)
        return split(
            plan,
            async_tensor_h2d(plan.numbers, device=self.device),
            common.query_start_loc,
            common.max_query_len,
            common.seq_lens[: common.num_reqs],
            common.block_table_tensor[: common.num_reqs],
            self.block_size,
        )

    def _schedule(self, passes: TwoPasses, max_num_splits: int, fast_build: bool) -> Scheduled:
        def of(part: Pass, causal: bool) -> torch.Tensor | None:
            return self._get_scheduler_metadata(
                aot_schedule=self.aot_schedule and not fast_build,
                batch_size=len(part.lengths),
                cu_query_lens=part.starts,
                max_query_len=part.max_queries,
                seqlens=part.lengths,
                max_seq_len=part.max_length,
                causal=causal,
                max_num_splits=max_num_splits,
            )

        return Scheduled(passes, shared=of(passes.shared, causal=False), own=of(passes.own, causal=True))


class GroupedAttention(flash_attn.FlashAttentionImpl):
    """Attends in two passes where the metadata have them."""

    def forward(
        self,
        layer: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: Any,
        output: torch.Tensor,
        output_scale: torch.Tensor | None = None,
        output_block_scale: torch.Tensor | None = None,
    ) -> torch.Tensor:
        scheduled: Scheduled | None = getattr(attn_metadata, _PASSES, None)
        if scheduled is None or output_scale is not None or output_block_scale is not None:
            return super().forward(
                layer, query, key, value, kv_cache, attn_metadata, output, output_scale, output_block_scale
            )
        assert self.vllm_flash_attn_version is not None  # ``eligible.py``
        passes, version = scheduled.passes, self.vllm_flash_attn_version
        keys, values = kv_cache.transpose(1, 2).split(self.head_size, dim=-1)
        keys, values = canonicalize_singleton_dim_strides(keys), canonicalize_singleton_dim_strides(values)

        def attend(
            part: Pass, of: torch.Tensor | None, queries: torch.Tensor, out: torch.Tensor, causal: bool
        ) -> tuple[torch.Tensor, torch.Tensor]:
            found: tuple[torch.Tensor, torch.Tensor] = flash_attn.flash_attn_varlen_func(
                q=queries,
                k=keys,
                v=values,
                out=out,
                cu_seqlens_q=part.starts,
                max_seqlen_q=part.max_queries,
                seqused_k=part.lengths,
                max_seqlen_k=part.max_length,
                softmax_scale=self.scale,
                causal=causal,
                window_size=[-1, -1],
                block_table=part.block_table,
                softcap=self.logits_soft_cap,
                return_softmax_lse=True,
                scheduler_metadata=of,
                fa_version=version,
                num_splits=attn_metadata.max_num_splits,
            )
            return found

        num, num_tokens = passes.num_grouped, attn_metadata.num_actual_tokens
        _, own_lse = attend(passes.own, scheduled.own, query[:num_tokens], output[:num_tokens], causal=True)
        grouped = query[:num]
        shared, shared_lse = attend(
            passes.shared, scheduled.shared, grouped, torch.empty_like(grouped), causal=False
        )
        # The kernel takes log-sum-exps by their shape: a part of a larger tensor would be read wrongly.
        flash_attn.merge_attn_states(
            output[:num], shared, shared_lse.contiguous(), output[:num], own_lse[:, :num].contiguous()
        )
        return output
