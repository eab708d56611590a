"""The random drive on a scheduler of a hybrid model: one KV cache group of attention, and one of recurrent states.

In the place of a state a block holds a number, which stands for the tokens that the state has seen. A request that
goes on from any other state fails the run.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec, MambaSpec
from vllm.v1.structured_output import StructuredOutputManager

from forkjoin_scheduler.vllm_seam.scheduler import ForkJoinScheduler
from tests.engine.copies import Work
from tests.engine.kv_numbers import MASK, number
from tests.engine.random_drive import Drive, Setup
from tests.engine.stand_in import StandIn


class RecurrentSetup(Setup):
    """A scheduler of a hybrid model, without drafts."""

    @classmethod
    def draw(cls, *args: Any) -> RecurrentSetup:
        """With a few blocks more: a request takes up to three for its states, beside those for attention."""
        drawn = super().draw(*args)
        options = {name: value for name, value in drawn.options.items() if name != "draft_from"}
        return replace(drawn, num_blocks=drawn.num_blocks + 4, max_drafts=0, options=options)

    def scheduler_of(self, config: Any) -> tuple[ForkJoinScheduler, Any]:
        cache, size = config.cache_config, self.block_size
        cache.num_gpu_blocks, cache.mamba_cache_mode, cache.mamba_block_size = self.num_blocks, "align", size
        full = FullAttentionSpec(block_size=size, num_kv_heads=6, head_size=32, dtype=torch.bfloat16)
        state = MambaSpec(
            block_size=size, shapes=((8, 4),), dtypes=(torch.float32,), mamba_cache_mode="align",
            page_size_padded=full.page_size_bytes,
        )  # fmt: skip
        groups = [KVCacheGroupSpec(["attention"], full), KVCacheGroupSpec(["recurrent"], state)]
        hash_ = get_hash_fn_by_name(cache.prefix_caching_hash_algo)
        init_none_hash(hash_)
        scheduler = ForkJoinScheduler(
            config,
            KVCacheConfig(self.num_blocks, [], groups),
            StructuredOutputManager(config),
            block_size=size,
        )
        return scheduler, get_request_block_hasher(size, hash_)


class States(StandIn):
    """Computes states as vLLM's workers do in the mode align (``preprocess_mamba``)."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        #: The column of its table in which each request has its state.
        self._columns: dict[str, int] = {}
        #: By request, a context and the state after each of its tokens.
        self._right: dict[str, tuple[list[int], list[int]]] = {}
        #: Requests that went on from a state that another one computed, in the middle of a block.
        self.num_copied = 0

    def execute(self, output: Any) -> Any:
        cached = output.scheduled_cached_reqs
        gone = (output.finished_req_ids, output.preempted_req_ids or (), cached.resumed_req_ids)
        if not output.num_scheduled_tokens:
            gone = ()  # vLLM's first runner forgets nothing in a step that computes nothing
        for request_id in (i for ids in gone for i in ids):
            self._columns.pop(request_id, None)
        return super().execute(output)

    def _compute(self, request_id: str, block_ids: list[int], work: Work, offsets: list[int]) -> list[int]:
        size, first, context = self._block_size, work.first, work.tokens
        is_new = request_id not in self._columns
        column = self._columns.get(request_id, (first - 1) // size)
        state = int(self._kv[block_ids[column] * size]) if first else 0
        where = f"{request_id}, token {first} of {len(context)}"
        assert state == self._after(request_id, context)[first], f"{where}: its state has seen other tokens"
        self.num_copied += is_new and "#" in request_id and first % size > 0
        values = []
        for place in range(first, len(context)):
            state = number(context[place], place, state)
            values.append(state)
        self._columns[request_id] = (len(context) - 1) // size
        self._kv[block_ids[self._columns[request_id]] * size] = state
        return values

    def _after(self, request_id: str, context: list[int]) -> list[int]:
        """The state before each token of a context, and after its last."""
        known, states = self._right.get(request_id, ([], [0]))
        if context[: len(known)] != known:
            known, states = [], [0]
        states = [*states]
        for place in range(len(known), len(context)):
            states.append(number(context[place], place, states[-1]) & MASK)
        self._right[request_id] = context, states
        return states


class RecurrentDrive(Drive):
    """One run on such a scheduler."""

    setups = RecurrentSetup
    models = States

    @property
    def num_copied(self) -> int:
        """Threads that started on a copy of a state in the middle of a block."""
        assert isinstance(self._model, States)
        return self._model.num_copied


def compared(dialect: str, kind: str, seed: int, model: Any) -> tuple[int, int]:
    """Make a run and the undisturbed one; returns how many contexts were compared, and states copied."""
    drive, calm = (make(dialect, kind, seed, model) for make in (RecurrentDrive.named, RecurrentDrive.calm))
    try:
        drive.run()
        calm.run()
        return drive.check_same(calm)[1], drive.num_copied
    except Exception as error:
        error.add_note(f'RecurrentDrive.named("{dialect}", "{kind}", {seed}, …), {drive.setup}')
        raise
