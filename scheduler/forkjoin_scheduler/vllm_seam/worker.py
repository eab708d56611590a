"""The workers' side of the stitched join: vLLM's own worker, whose model runner also obeys metadata.

``--worker-cls forkjoin_scheduler.vllm_seam.worker.ForkJoinWorker``

A step of a model runner, with what is ours marked ``*``:

1. zero new blocks, copy blocks that are shared in part
2. ``*`` copy slots (``WorkerStepMetadata.slot_copies``)
3. positions = slot index, slot mapping from them, attention metadata
4. ``*`` positions += offset (``WorkerStepMetadata.position_offsets``); a model with path embeddings is told
   the path of each token (``WorkerStepMetadata.paths``)
5. forward pass, sampling

Why this order holds:

- 2 after 1: a destination may be a block allocated in this step, which 1 clears, or a copy made in
  it, whose tail 1 would overwrite. A source is never cleared: it was computed, so it is not new.
- 2 before 5: the parent's tokens read the destinations.
- 2 among the steps: all are queued on one stream. So the forward pass in flight (async scheduling) has
  written the sources, and who gets their blocks in a later step writes them later. In this step nobody
  may: 1 would clear them. That is the scheduler's part (``WorkerStepMetadata.slot_copies``).
- 4 after 3: the KV of a token is written where the slot mapping says, which must stay the index.
  Attention's mask counts by slots (``seq_lens``), so only the rotation sees the offset.

Never met a GPU: whether FULL CUDA graphs, captured with our buffers, replay with offsets; and that
nothing above waits for the device. Both runners, without graphs, are run on CPUs. ``forkjoin verify`` runs
them on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from vllm.utils.torch_utils import async_tensor_h2d

from forkjoin_scheduler.errors import UnsupportedEngine
from forkjoin_scheduler.tensors.slots import Copier, slot_copier
from forkjoin_scheduler.tensors.together import together
from forkjoin_scheduler.tensors.tokens import Int64s, add_offsets
from forkjoin_scheduler.vllm_seam.cache.layouts import copy_slots, facts_of, layout_of, refusal
from forkjoin_scheduler.vllm_seam.cache.worker_step_metadata import (
    NOTHING,
    WorkerStepMetadata,
    metadata_of,
)
from forkjoin_scheduler.vllm_seam.grouped.runner import GroupingWorker

#: The base class, to the type checker: which it is is the platform's choice.
Runner: Any = object


class PathIds:
    """Writes the path of each token of a step to where ``model`` reads it.

    That is a buffer of the model (``path_ids``): graphs are captured on it, and read what was written last. A
    model without this buffer is told nothing. Padding keeps a path of an earlier step, which is valid.
    """

    def __init__(self, model: Any) -> None:
        self._buffer: torch.Tensor | None = getattr(model, "path_ids", None)
        #: Whether the buffer has any path but 0.
        self._has_paths = False

    def write(self, metadata: WorkerStepMetadata, ids: list[str], num_tokens: npt.NDArray[Any]) -> None:
        """Queue the write on the current stream, after the forward pass in flight."""
        if self._buffer is None:
            return
        paths = metadata.token_paths(ids, num_tokens)
        if paths is not None:
            self._buffer[: len(paths)] = async_tensor_h2d(paths, device=self._buffer.device)
        elif self._has_paths:
            self._buffer.zero_()
        self._has_paths = paths is not None


class CopiesSlots(Runner):
    """What both model runners need to move KV."""

    #: Layers and what moves their KV. Not the caches: these must not outlive vLLM's own references.
    _stitched: tuple[tuple[Copier, Any], ...] = ()
    #: Tells the model the path of each token.
    _paths = PathIds(None)

    def learn_layouts(self) -> None:
        """Find out how to move the KV of each layer.

        Raises:
            UnsupportedEngine: when a layer's can't be moved; the engine does not start.

        """
        if reason := refusal(facts_of(self.vllm_config, self.kv_cache_config, self.attn_groups)):
            raise UnsupportedEngine(reason)
        context = self.vllm_config.compilation_config.static_forward_context
        found = []
        for group in (group for groups in self.attn_groups for group in groups):
            for layer in (context[name] for name in group.layer_names):
                copier = slot_copier(*layout_of(group.backend, layer))
                assert copier is not None, "refusal() knows the same table"
                found.append((copier, layer))
        self._stitched = tuple(found)
        self._paths = PathIds(self.get_model())

    def warm_up(self) -> None:
        """Run what a fork and a join run first, on memory of its own: devices load a kernel when it is used.

        That is a copy of slots, vLLM's of a block that threads share in part, and an offset of positions.
        """
        for copier, view in together(self._caches(), num_slots=1):
            blocks = torch.zeros((2, *view.shape[1:]), dtype=view.dtype, device=view.device)
            copy_slots([(copier, blocks)], np.array([[0, blocks.shape[-2]]]))
            in_bytes, ids = blocks.view(2, -1).view(torch.uint8), torch.arange(2, device=view.device)
            for alike in (blocks, in_bytes):  # vLLM copies by bytes where layers follow each other in a block
                alike[ids[1:]] = alike[ids[:1]]
            positions = torch.zeros(1, dtype=torch.int64, device=view.device)
            _offset(positions, WorkerStepMetadata(position_offsets={"": [(1, 1)]}), [""], np.array([1]), 2)

    def _copy_slots(self, slot_copies: Int64s) -> None:
        copy_slots(self._caches(), slot_copies)

    def _caches(self) -> Iterator[tuple[Copier, torch.Tensor]]:
        return ((copier, layer.kv_cache) for copier, layer in self._stitched)


class ObeysOrdersV1(CopiesSlots):
    """In front of vLLM's first model runner."""

    def _update_states(self, scheduler_output: Any) -> Any:
        corrections = super()._update_states(scheduler_output)
        self._copy_slots(metadata_of(scheduler_output).slot_copies)
        return corrections

    def _prepare_inputs(self, scheduler_output: Any, num_scheduled_tokens: npt.NDArray[Any]) -> Any:
        """Offset the positions in vLLM's own buffer, which graphs read and each step writes again."""
        prepared = super()._prepare_inputs(scheduler_output, num_scheduled_tokens)
        metadata, ids = metadata_of(scheduler_output), self.input_batch.req_ids
        positions = self.mrope_positions.gpu if self.uses_mrope else self.positions
        _offset(positions, metadata, ids, num_scheduled_tokens, self.max_model_len)
        self._paths.write(metadata, ids, num_scheduled_tokens)
        return prepared


class ObeysOrdersV2(CopiesSlots):
    """In front of vLLM's second model runner."""

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        super().load_model(*args, **kwargs)
        self.model_state: Any = OffsetPositions(
            self.model_state, self.input_buffers.positions, self.max_model_len
        )

    def learn_layouts(self) -> None:
        super().learn_layouts()
        self.model_state.paths = self._paths

    def update_requests(self, scheduler_output: Any) -> None:
        super().update_requests(scheduler_output)
        metadata = metadata_of(scheduler_output)
        self._copy_slots(metadata.slot_copies)
        self.model_state.metadata = metadata


class OffsetPositions:
    """The model's ``ModelState``, except that the model is given positions of our own.

    vLLM's buffer must keep the slot index: the sampler seeds its noise and counts ``min_tokens`` by it.
    Graphs are captured on a buffer, not on its values, so ours is given in the dummy inputs of the
    capture too, and filled in every step, metadata or not. Padding is copied with the rest: as valid as
    vLLM's.
    """

    def __init__(self, inner: Any, like: torch.Tensor, max_model_len: int) -> None:
        self._inner, self._max_model_len = inner, max_model_len
        self._positions = torch.zeros_like(like)
        #: Whether it has a buffer of its own for positions, which each step writes again: with M-RoPE.
        self._has_own = getattr(inner, "rope_state", None) is not None
        #: Those of the step that is being executed. A dummy run's request ids are in none.
        self.metadata: WorkerStepMetadata = NOTHING
        self.paths = PathIds(None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def prepare_inputs(self, input_batch: Any, req_states: Any) -> dict[str, Any]:
        inputs = self._inner.prepare_inputs(input_batch, req_states)
        if self._has_own:
            positions = inputs["positions"]
        else:
            positions = self._positions[: input_batch.num_tokens_after_padding].copy_(input_batch.positions)
        ids, num_tokens = input_batch.req_ids, input_batch.num_scheduled_tokens
        _offset(positions, self.metadata, ids, num_tokens, self._max_model_len)
        self.paths.write(self.metadata, ids, num_tokens)
        return {**inputs, "positions": positions}

    def prepare_dummy_inputs(self, num_reqs: int, num_tokens: int) -> dict[str, Any]:
        inputs = self._inner.prepare_dummy_inputs(num_reqs, num_tokens)
        return inputs if self._has_own else {**inputs, "positions": self._positions[:num_tokens]}


def _offset(
    positions: torch.Tensor,
    metadata: WorkerStepMetadata,
    request_ids: list[str],
    num_tokens: npt.NDArray[Any],
    max_model_len: int,
) -> None:
    """Add, in place, to the positions of a batch what ``metadata`` say of its requests."""
    offsets = metadata.token_offsets(request_ids, num_tokens)
    if offsets is not None:
        add_offsets(positions, async_tensor_h2d(offsets, device=positions.device), max_model_len)


class ForkJoinWorker(GroupingWorker):
    """The platform's worker with a model runner that obeys metadata, and that groups attention if it can."""

    def init_device(self) -> None:
        """Build the runner and put our methods in front of its class.

        Which class it is the worker decides, on CPUs by name and in the middle of this method; so the
        runner is made ours when it stands. Ours need no set-up, and nothing has run yet.
        """
        super().init_device()
        runner, ours = self.model_runner, ObeysOrdersV2 if self.use_v2_model_runner else ObeysOrdersV1
        runner.__class__ = type(f"ForkJoin{type(runner).__name__}", (ours, type(runner)), {})

    def initialize_from_config(self, kv_cache_config: Any) -> None:
        super().initialize_from_config(kv_cache_config)
        self.model_runner.learn_layouts()
        self.model_runner.warm_up()
