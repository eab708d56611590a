"""vLLM's ``ModelState``, which hands the groups of a step to the builders of attention metadata."""

from __future__ import annotations

from typing import Any

from vllm.config.compilation import CUDAGraphMode
from vllm.v1.worker.gpu.model_states.default import DefaultModelState
from vllm.v1.worker.gpu.model_states.interface import ModelSpecificAttnMetadata

from forkjoin_scheduler.tensors.two_passes import StepGroups
from forkjoin_scheduler.vllm_seam.grouped.flash_attention import GroupedMetadataBuilder
from forkjoin_scheduler.vllm_seam.grouped.step import Step


class _OfGroups(ModelSpecificAttnMetadata):
    def __init__(self, groups: StepGroups | None, *, for_graph: bool) -> None:
        self._more = {"groups": groups, "for_graph": for_graph}

    def get_extra_attn_kwargs(self, attn_metadata_builder: Any, num_reqs: int) -> dict[str, Any]:
        # Builders of other layers keep their class; their blocks are of no concern to the groups.
        return self._more if isinstance(attn_metadata_builder, GroupedMetadataBuilder) else {}


def make_grouping(state: Any, step: Step) -> None:
    """Let a runner's model state hand on the groups of ``step``, which the runner writes."""
    state.__class__, state.step = GroupingModelState, step


class GroupingModelState(DefaultModelState):
    """What a runner's model state is made, once its layers are found to be groupable."""

    step: Step

    def prepare_attn(self, input_batch: Any, cudagraph_mode: CUDAGraphMode, *args: Any, **more: Any) -> Any:
        groups, step = self._groups_of(input_batch, cudagraph_mode), self.step
        step.was_grouped = groups is not None
        # A graph with two passes reads its buffers, groups or none: unwritten they were the last step's.
        if groups is not None or step.is_replayed:
            more["model_specific_attn_metadata"] = _OfGroups(groups, for_graph=step.is_replayed)
        return super().prepare_attn(input_batch, cudagraph_mode, *args, **more)

    def _groups_of(self, input_batch: Any, cudagraph_mode: CUDAGraphMode) -> StepGroups | None:
        """The groups of a batch; None if its rows are attended to one by one."""
        # vLLM's graphs of whole steps have attention of one pass in them.
        if cudagraph_mode == CUDAGraphMode.FULL and not self.step.is_replayed:
            return None
        # A batch of another order, half a batch or a dummy is not that of the groups.
        ids = self.step.ids
        return self.step.groups if tuple(input_batch.req_ids[: len(ids)]) == ids else None
