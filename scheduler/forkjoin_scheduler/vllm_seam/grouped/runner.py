"""The workers' side of grouped attention, on vLLM's second model runner.

``--worker-cls forkjoin_scheduler.vllm_seam.grouped.runner.GroupingWorker``

A step with groups, with what is ours marked ``*``:

1. ``*`` learn the groups of the step (``handing.py``)
2. choose the graph: ``*`` one in pieces, or one of a whole step with two passes in it (``graphs.py``)
3. ``*`` attention metadata with the two passes (``model_state.py``, ``flash_attention.py``)
4. forward pass: ``*`` two passes and a merge in each layer that can be grouped
5. sampling; ``*`` report what was done

vLLM's objects are made instances of subclasses once all of them stand, before graphs are captured. A worker
that can't group leaves them alone and reports nothing; then the scheduler sends no groups.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import islice
from typing import Any

from vllm.logger import init_logger
from vllm.platforms import current_platform
from vllm.utils.import_utils import resolve_obj_by_qualname

from forkjoin_scheduler.settings import AUTO
from forkjoin_scheduler.vllm_seam.compat import settings_of
from forkjoin_scheduler.vllm_seam.grouped.handing import Report, attach_report, groups_of

logger = init_logger("vllm.forkjoin.engine")

#: The base classes, to the type checker: which they are is the platform's choice.
Runner: Any = object
PlatformWorker: Any = resolve_obj_by_qualname(
    "vllm.v1.worker.cpu_worker.CPUWorker" if current_platform.is_cpu() else "vllm.v1.worker.gpu_worker.Worker"
)


class GroupsRows(Runner):
    """In front of vLLM's second model runner."""

    #: What it is able to group, without what it did; None: nothing.
    _can: Report | None = None
    _step: Any = None

    def learn_groups(self) -> str | None:
        """Make what can be grouped so; returns why nothing can, if so."""
        from vllm.v1.attention.backends.flash_attn import FlashAttentionImpl, FlashAttentionMetadataBuilder
        from vllm.v1.worker.gpu.model_states.default import DefaultModelState

        from forkjoin_scheduler.vllm_seam.grouped import check, eligible
        from forkjoin_scheduler.vllm_seam.grouped.flash_attention import (
            GroupedAttention,
            GroupedMetadataBuilder,
        )
        from forkjoin_scheduler.vllm_seam.grouped.model_state import make_grouping
        from forkjoin_scheduler.vllm_seam.grouped.step import Step

        if reason := eligible.engine_reason(self.vllm_config):
            return reason
        state = innermost(self.model_state)
        if type(state) is not DefaultModelState:
            return f"a model with inputs of its own ({type(state).__name__})"
        layers, reason = self._layers()
        if reason is not None:
            return reason
        builder, first = layers[0][0].get_metadata_builder(), layers[0][1]
        version = first.impl.vllm_flash_attn_version
        if settings_of(self.vllm_config).grouped_attention == AUTO and version != 3:
            return f"FlashAttention {version}: auto expects 3; a number of tokens groups with 2, too"
        _make(layers, GroupedMetadataBuilder, GroupedAttention)
        group_id, spec = layers[0][0].kv_cache_group_id, layers[0][0].kv_cache_spec
        if reason := check.block_reason(builder, first, first.kv_cache, group_id):
            _make(layers, FlashAttentionMetadataBuilder, FlashAttentionImpl)
            logger.warning("grouped attention can't be trusted: %s", reason)
            return reason
        self._step = Step()
        make_grouping(state, self._step)
        token_bytes, is_whole = spec.page_size_bytes // spec.block_size, False
        if settings_of(self.vllm_config).grouped_graphs == "full":
            reason = self._learn_graphs(layers)
            is_whole = reason is None
            logger.info_once("grouped attention in graphs of whole steps: %s", reason or "on")
        self._can = Report(group_id, token_bytes, is_whole=is_whole)
        return None

    def _learn_graphs(self, layers: list[tuple[Any, Any]]) -> str | None:
        """Have graphs of whole steps with two passes captured; returns why none can be, if so."""
        from forkjoin_scheduler.vllm_seam.grouped import check, eligible
        from forkjoin_scheduler.vllm_seam.grouped.graph_passes import GraphPasses
        from forkjoin_scheduler.vllm_seam.grouped.graphs import make_capturing

        if reason := eligible.graphs_reason(self.vllm_config, [layer.impl for _, layer in layers]):
            return reason
        group, first = layers[0]
        if reason := check.graph_reason(group.get_metadata_builder(), first, first.kv_cache):
            return reason
        if not make_capturing(self.cudagraph_manager, self._step):
            return "no graphs of whole steps are captured"
        table = self.block_tables.input_block_tables[group.kv_cache_group_id]
        for builder in {id(b): b for b in (group.get_metadata_builder() for group, _ in layers)}.values():
            builder.for_graphs = GraphPasses(
                self._step, self.max_num_reqs, table.shape[1], self.max_model_len, self.device
            )
        return None

    def _layers(self) -> tuple[list[tuple[Any, Any]], str | None]:
        """Layers of the model that can be grouped, all of one KV cache group, each after its attention group.

        If there are none: why the first that was looked at can't be.
        """
        from forkjoin_scheduler.vllm_seam.grouped import eligible

        context = self.vllm_config.compilation_config.static_forward_context
        of_drafter = getattr(self.speculator, "draft_attn_layer_names", ())
        found, reasons = [], ["a model without attention"]
        for attn_group in (group for groups in self.attn_groups for group in groups):
            if reason := eligible.group_reason(attn_group):
                reasons.append(reason)
                continue
            for layer in (context[name] for name in attn_group.layer_names if name not in of_drafter):
                if reason := eligible.layer_reason(layer.impl):
                    reasons.append(reason)
                else:
                    found.append((attn_group, layer))
        if not found:
            return [], reasons[min(1, len(reasons) - 1)]
        ((most, _),) = Counter(group.kv_cache_group_id for group, _ in found).most_common(1)
        return [(group, layer) for group, layer in found if group.kv_cache_group_id == most], None

    def update_requests(self, scheduler_output: Any) -> None:
        super().update_requests(scheduler_output)
        if self._can is not None:
            step = self._step
            step.groups, step.was_grouped = groups_of(scheduler_output), False
            num = 0 if step.groups is None else step.groups.total_rows
            step.ids = tuple(islice(scheduler_output.num_scheduled_tokens, num))

    def gather_batch_req_state(self, scheduler_output: Any, dummy_run: bool) -> Any:
        """Say of a step with groups that its rows are not alike, unless a graph of a whole step may run it.

        vLLM's graphs of whole steps expect rows that are alike, and have one pass in them.
        """
        state, num_alike = super().gather_batch_req_state(scheduler_output, dummy_run)
        if self._can is None:
            return state, num_alike
        step = self._step
        groups = None if dummy_run else step.groups
        step.is_replayed = False
        step.wants_graph = groups is not None and self._can.is_whole and num_alike == groups.num_queries
        return state, num_alike if groups is None or step.wants_graph else None

    def prepare_inputs(self, *args: Any, **more: Any) -> Any:
        """Note whether the graph that was chosen, which is among the arguments, has two passes in it."""
        if self._can is not None and self._can.is_whole:
            from forkjoin_scheduler.vllm_seam.grouped.graphs import GroupedDescriptor

            given = (*args, *more.values())
            self._step.is_replayed = any(isinstance(value, GroupedDescriptor) for value in given)
        return super().prepare_inputs(*args, **more)

    def sample_tokens(self, *args: Any, **more: Any) -> Any:
        output = super().sample_tokens(*args, **more)
        if self._can is not None and output is not None:
            step, can = self._step, self._can
            if step.was_grouped:
                rows, saved = step.groups.total_rows, step.groups.saved_tokens
                can = replace(can, rows=rows, saved_tokens=saved)
            attach_report(output, can)
        return output


def _make(layers: list[tuple[Any, Any]], builder: type, attention: type) -> None:
    """Let what builds metadata, and what attends, be of these classes."""
    for attn_group, layer in layers:
        attn_group.get_metadata_builder().__class__ = builder
        layer.impl.__class__ = attention


def innermost(model_state: Any) -> Any:
    """The state that is vLLM's own; ours may be around it (``worker.OffsetPositions``)."""
    return vars(model_state).get("_inner", model_state)


class GroupingWorker(PlatformWorker):
    """The platform's worker; on the second model runner its attention can be grouped."""

    def init_device(self) -> None:
        super().init_device()
        if self.use_v2_model_runner:
            runner = self.model_runner
            runner.__class__ = type(f"Grouping{type(runner).__name__}", (GroupsRows, type(runner)), {})

    def initialize_from_config(self, kv_cache_config: Any) -> None:
        super().initialize_from_config(kv_cache_config)
        if not settings_of(self.vllm_config).groups_attention:
            return
        reason = self.model_runner.learn_groups() if self.use_v2_model_runner else "vLLM's first model runner"
        if reason is None:
            logger.info_once("grouped attention is on: KV that rows of a step share is read once")
        else:
            logger.info_once("grouped attention is off: %s", reason)
