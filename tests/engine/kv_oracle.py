"""Exact KV without a model: what each token reads from the cache, against what it should.

A slot that was written by another request, or moved wrongly, or computed in a row where it should not be, makes
a wrong sum of numbers (``kv_numbers.py``).

``KVOracle.execute`` does what the workers do in a step: blocks are copied, slots moved, tokens computed. Before
it computes a request it compares the sum that this reads with the sum that the request's tree gives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from vllm.v1.request import Request

from forkjoin_scheduler.families.family import Branch
from forkjoin_scheduler.families.stitch import num_skipped
from forkjoin_scheduler.machine import joining
from forkjoin_scheduler.vllm_seam.live import LiveFamily
from tests.engine.copies import Work
from tests.engine.kv_numbers import MASK, move, number, offsets_of, slots_of


@dataclass
class _Sums:
    """``sums`` in front of the tokens of ``context``, whose next token is at its place + ``offset``."""

    num_joined: int
    context: list[int]
    sums: dict[int, int]
    offset: int


class KVOracle:
    """The KV slots of one scheduler. Only for one KV cache group, of full or sliding-window attention.

    ``window``: how many tokens each attends to, itself among them; None: all.
    """

    def __init__(self, scheduler: Any, window: int | None = None) -> None:
        self._scheduler = scheduler
        (self._single,) = scheduler.kv_cache_manager.coordinator.single_type_managers
        self._size: int = self._single.block_size
        self._window = window
        num_slots = len(self._single.block_pool.blocks) * self._size
        self._slots = np.random.default_rng(0).integers(1 << 63, size=num_slots, dtype=np.uint64)
        #: By request id, a context and the sums in front of each of its tokens.
        self._sums: dict[str, tuple[list[int], list[int]]] = {}
        self._stitched_sums: dict[str, _Sums] = {}
        #: Comparisons made, and those of them behind a stitched join.
        self.num_compared = self.num_compared_stitched = 0

    def execute(self, output: Any, works: Mapping[str, Work]) -> None:
        """Execute the step ``output``, which is this work for its requests. Call it right after ``schedule``.

        Raises AssertionError if a request reads KV that is not that of its context.
        """
        metadata = move(self._slots, output, self._size)
        for request_id, num_tokens in output.num_scheduled_tokens.items():
            request = self._scheduler.requests[request_id]
            self._compute(request, works[request_id], offsets_of(metadata, request_id, num_tokens))

    def _compute(self, request: Request, work: Work, offsets: list[int]) -> None:
        context, first = self._of_adapter(request, work.tokens), work.first
        table = [b.block_id for b in self._single.req_to_blocks[request.request_id]]
        slots = slots_of(table, len(context), self._size)
        before = max(first - self._window + 1, 0) if self._window else 0
        read = int(self._slots[slots[before:first]].sum())
        self._compare(request, context, first, read)
        for i in range(first, len(context)):
            if self._window and i >= self._window:
                left = slots[i - self._window]
                read -= int(self._slots[left]) if i - self._window >= before else 0
            written = number(context[i], i + offsets[i - first], read & MASK)
            self._slots[slots[i]] = written
            read += written

    def _of_adapter(self, request: Request, tokens: list[int]) -> list[int]:
        """The tokens as their request's adapter computes them: with another, KV is another."""
        if request.lora_request is None:
            return tokens
        live, _ = self._branch(request.request_id)
        assert live is None or not live.dialect.join.moves_kv, "expected no stitched join beside adapters"
        return [token + (request.lora_request.lora_int_id << 32) for token in tokens]

    # ---- what it should read ---------------------------------------------------------------

    def _compare(self, request: Request, context: list[int], first: int, read: int) -> None:
        request_id = request.request_id
        if request_id in self._scheduler._jobs.prefills:
            return  # what it computes is read by others
        live, branch = self._branch(request_id)
        if live is None or branch is None or not live.dialect.join.moves_kv:
            right = self._in_a_row(request_id, context)[first]
        else:
            right = self._sums_of(live, branch, context).get(first)
            self.num_compared_stitched += bool(branch.joined_forks)
        self.num_compared += 1
        where = f"{request_id}, token {first} of {len(context)}"
        assert right is not None, f"{where}: computed in a row where threads were joined"
        assert read & MASK == right, f"{where}: it reads KV that is not its context's"

    def _branch(self, request_id: str) -> tuple[LiveFamily | None, Branch | None]:
        if entry := self._scheduler._core.threads.get(request_id):
            return entry
        live = self._scheduler._core.live.get(request_id)
        return live, None if live is None else live.family.root

    def _in_a_row(self, request_id: str, context: list[int]) -> list[int]:
        """The sum in front of each token of a context in a row, and behind its last."""
        known, sums = self._sums.get(request_id, ([], [0]))
        if context[: len(known)] != known:
            known, sums = [], [0]
        numbers: list[int] = []
        if self._window:
            known, sums = [], [0]
        for i in range(len(known), len(context)):
            written = number(context[i], i, sums[-1])
            numbers.append(written)
            left = numbers[i - self._window + 1] if self._window and i >= self._window - 1 else 0
            sums.append((sums[-1] + written - left) & MASK)
        self._sums[request_id] = context, sums
        return sums

    def _sums_of(self, live: LiveFamily, branch: Branch, context: list[int]) -> dict[int, int]:
        """The sums in front of the tokens of a stitched branch, but for those of its joined threads."""
        num_joined = len(branch.joined_forks)
        known = self._stitched_sums.get(branch.request_id)
        if known is None or known.num_joined != num_joined or context[: len(known.context)] != known.context:
            known = self._sums_behind_joins(live, branch, context)
        at, seen = len(known.context), known.sums[len(known.context)]
        for i in range(at, len(context)):
            seen = (seen + number(context[i], i + known.offset, seen)) & MASK
            known.sums[i + 1] = seen
        known.context = context
        self._stitched_sums[branch.request_id] = known
        return known.sums

    def _sums_behind_joins(self, live: LiveFamily, branch: Branch, context: list[int]) -> _Sums:
        sums, seen, offset, at = {0: 0}, 0, branch.start_offset, branch.fork_len
        if branch.parent is not None:
            parent = self._scheduler.requests[branch.parent.request_id]._all_token_ids
            sums = dict(self._sums_of(live, branch.parent, list(parent[: branch.fork_len])))
            seen = sums[branch.fork_len]
        for threads in branch.joined_forks:
            for i in range(at, threads[0].fork_len):
                seen = (seen + number(context[i], i + offset, seen)) & MASK
                sums[i + 1] = seen
            seen, at, offset = self._behind(live, threads, context, seen)
            sums[at] = seen
        return _Sums(len(branch.joined_forks), context[:at], sums, offset)

    def _behind(
        self, live: LiveFamily, threads: list[Branch], context: list[int], seen: int
    ) -> tuple[int, int, int]:
        """The sum behind a join of ``threads`` upon ``seen``, its place, and the offset of what follows."""
        fork_len = threads[0].fork_len
        added = [self._sum_of_joined(live, t, context[:fork_len], seen) for t in threads]
        own_ids = joining.own_ids
        lengths = [len(own_ids(live, t)) - num_skipped(t, is_first=t is threads[0]) for t in threads]
        offset = joining.offset_behind(live, threads)
        return (seen + sum(added)) & MASK, fork_len + sum(lengths), offset

    def _sum_of_joined(self, live: LiveFamily, thread: Branch, before: list[int], start: int) -> int:
        """What a joined thread adds to the sum of those that see it: its own text, less what is left out."""
        context = [*before, *joining.own_ids(live, thread)]
        seen, at, offset = start, thread.fork_len, thread.start_offset
        left_out = 0
        first_kept = thread.fork_len + num_skipped(thread, is_first=thread.sibling_index == 0)
        for threads in [*thread.joined_forks, None]:
            for i in range(at, len(context) if threads is None else threads[0].fork_len):
                written = number(context[i], i + offset, seen)
                left_out += written if i < first_kept else 0
                seen = (seen + written) & MASK
            if threads is not None:
                seen, at, offset = self._behind(live, threads, context, seen)
        return (seen - start - left_out) & MASK
