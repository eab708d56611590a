"""vLLM's ``ModelState``, which hands the groups of a step to the builders of attention metadata."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vllm.config.compilation import CUDAGraphMode
from vllm.v1.worker.gpu.model_states.default import DefaultModelState
from vllm.v1.worker.gpu.model_states.interface import ModelSpecificAttnMetadata

from forkjoin_scheduler.tensors.two_passes import StepGroups
from forkjoin_scheduler.vllm_seam.grouped.flash_attention import GroupedMetadataBuilder


class _OfGroups(ModelSpecificAttnMetadata):
    def __init__(self, groups: StepGroups) -> None:
        self._groups = groups

    def get_extra_attn_kwargs(self, attn_metadata_builder: Any, num_reqs: int) -> dict[str, Any]:
        # Builders of other layers keep their class; their blocks are of no concern to the groups.
        return {"groups": self._groups} if isinstance(attn_metadata_builder, GroupedMetadataBuilder) else {}


@dataclass
class Step:
    """The groups of the step that is executed, the ids of their rows, and whether it was grouped."""

    groups: StepGroups | None = None
    ids: tuple[str, ...] = ()
    was_grouped: bool = False


def make_grouping(state: Any, step: Step) -> None:
    """Let a runner's model state hand on the groups of ``step``, which the runner writes."""
    state.__class__, state.step = GroupingModelState, step


class GroupingModelState(DefaultModelState):
    """What a runner's model state is made, once its layers are found to be groupable."""

    step: Step

    def prepare_attn(self, input_batch: Any, cudagraph_mode: CUDAGraphMode, *args: Any, **more: Any) -> Any:
        groups, ids = self.step.groups, self.step.ids
        # A batch of another order, half a batch or a dummy is not that of the groups. Graphs of whole steps
        # have attention of one pass in them.
        if (
            groups is not None
            and cudagraph_mode != CUDAGraphMode.FULL
            and tuple(input_batch.req_ids[: len(ids)]) == ids
        ):
            self.step.was_grouped = True
            more["model_specific_attn_metadata"] = _OfGroups(groups)
        return super().prepare_attn(input_batch, cudagraph_mode, *args, **more)
