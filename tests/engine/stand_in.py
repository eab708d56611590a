"""What stands in the place of a model: it writes by rote, and its KV tells what it was computed from.

What a branch writes depends on the branch and how far it has come, as with a greedy model, and on
nothing else: so a request's answer is the same however its steps fell. A slot of the KV cache holds
a number (``kv_numbers.py``), made of those that are read from the slots of its context. So two runs that
sample at the same place from the same KV have the same number there, and with any slot of the context
wrong, stale or missing they have not: these numbers are to a run what log-probabilities are to a model's.
The log-probabilities that it gives are made of them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from vllm.v1.outputs import LogprobsLists, ModelRunnerOutput
from vllm.v1.request import Request

from forkjoin_bench.vllm_seam.fed import runner_output
from forkjoin_bench.vllm_seam.offloading import OffloadingWorkers
from forkjoin_scheduler.vllm_seam.tokenizer import EngineTokenizer
from tests.engine.copies import Copies, Work
from tests.engine.kv_numbers import move, number, offsets_of, slots_of

#: A branch: the request's id, then of each fork on the way its number and the place in it.
Path = tuple[Any, ...]
#: Where something is sampled: the branch, the tokens that were its prompt then, those sampled behind it.
Place = tuple[Path, int, int]
#: Token ids, their logprobs, the first one's rank.
LogprobsRow = tuple[Any, ...]

#: Of the sampled token and of two others, whatever a request asks for: each bit of a number is in one of them.
_SHIFTS = np.array([0, 22, 43], dtype=np.uint64)


class StandIn:
    """Executes what a scheduler schedules. ``name``: all that it writes comes of that."""

    def __init__(
        self, scheduler: Any, tokenizer: EngineTokenizer, phrases: Sequence[str], name: str, copies: Copies
    ) -> None:
        self._scheduler = scheduler
        self._copies = copies
        self._name = name
        self._phrases = [tokenizer.encode(phrase) for phrase in phrases]
        #: What answers begin with: most phrases of one token end something.
        self._openings = [ids for ids in self._phrases if len(ids) > 1] or self._phrases
        #: What each branch writes, and whoever goes on writing it.
        self._texts: dict[tuple[Path, int], tuple[list[int], random.Random]] = {}
        self._paths: dict[str, Path] = {}
        manager = scheduler.kv_cache_manager
        #: Of the only KV cache group, or the last.
        self._tables = manager.coordinator.single_type_managers[-1].req_to_blocks
        self._block_size = scheduler.block_size
        self._kv = np.zeros(len(manager.block_pool.blocks) * self._block_size, dtype=np.uint64)
        #: The requests of the step that was scheduled last, with their blocks.
        self._scheduled: dict[str, tuple[Request, list[int]]] = {}
        self._remember_scheduled()
        #: Where the scheduler has a KV connector.
        self.offloading = None if scheduler.connector is None else OffloadingWorkers(scheduler, self._kv)
        #: What was sampled from, by place.
        self.seen: dict[Place, int] = {}

    def _remember_scheduled(self) -> None:
        """Note what workers are told: they compute it, though its family may fail before they do."""
        original = self._scheduler._update_after_schedule

        def update_after_schedule(output: Any) -> None:
            original(output)
            self._scheduled = {
                i: (self._scheduler.requests[i], [b.block_id for b in self._tables[i]])
                for i in output.num_scheduled_tokens
            }

        self._scheduler._update_after_schedule = update_after_schedule

    def execute(self, output: Any) -> ModelRunnerOutput:
        """Compute a step right behind its scheduling; what it samples.

        Raises AssertionError if a request samples at one place twice, and from another context.
        """
        if self.offloading is not None:
            self.offloading.before(output)
        metadata = move(self._kv, output, self._block_size)
        self._copies.step(output)
        sampled: dict[str, list[int]] = {}
        rows: list[list[tuple[int, int]]] = []
        wants_logprobs = False
        for request_id, num_tokens in output.num_scheduled_tokens.items():
            request, table = self._scheduled[request_id]
            work = self._copies.work(output, request)
            offsets = offsets_of(metadata, request_id, num_tokens)
            values = self._compute(request_id, table, work, offsets)
            if request_id not in self._scheduler.requests:  # its family has failed
                sampled[request_id] = [0]
            else:
                sampled[request_id] = [] if request.is_prefill_chunk else self._sample(request, work, values)
            from_ = values[len(values) - work.num_drafts - 1 :]
            rows.append([*zip(sampled[request_id] or [0], from_, strict=False)])
            wants_logprobs |= request.sampling_params.num_logprobs is not None
        result = runner_output(sampled, logprobs_of(rows) if wants_logprobs else None)
        if self.offloading is not None:
            result.kv_connector_output = self.offloading.after(output)
        return result

    def rows_of(self, request_id: str) -> set[LogprobsRow]:
        """The rows of logprobs of all that the branches of a request have sampled."""
        rows = []
        for (path, prompt_len, index), value in self.seen.items():
            if path[0] == request_id:
                rows.append((self._texts[path, prompt_len][0][index], value))
        return set(rows_in(logprobs_of([rows])))

    def _compute(self, request_id: str, block_ids: list[int], work: Work, offsets: list[int]) -> list[int]:
        """PrefillRequest the slots of the tokens of ``work``, which have these; returns what they hold then."""
        slots = slots_of(block_ids, len(work.tokens), self._block_size)
        seen, values = int(self._kv[slots[: work.first]].sum()), []
        for place, offset in enumerate(offsets, work.first):
            assert 0 <= place + offset < self._scheduler.max_model_len + work.num_drafts
            values.append(number(work.tokens[place], place + offset, seen))
            self._kv[slots[place]] = values[-1]
            seen += values[-1]
        return values

    def _sample(self, request: Request, work: Work, values: list[int]) -> list[int]:
        sampled = self._copies.sample(
            request, work, lambda place: self._written(request, place - request.num_prompt_tokens)
        )
        if "#fill" in request.request_id:
            return sampled
        first = len(work.tokens) - work.num_drafts - request.num_prompt_tokens
        for i in range(len(sampled)):
            at = self._path(request), self._prompt(request), first + i
            value = values[len(values) - work.num_drafts - 1 + i]
            assert self.seen.setdefault(at, value) == value, f"at {at} from another context than before"
        return sampled

    def _written(self, request: Request, index: int) -> int:
        """The token that ``request`` writes, ``index`` tokens behind its prompt."""
        key = self._path(request), self._prompt(request)
        text, chance = self._texts.setdefault(key, ([], random.Random(f"{self._name} {key}")))
        if not text and len(key[0]) == 1:
            text += chance.choice(self._openings)
        while len(text) <= index:
            text += chance.choice(self._phrases)
        return text[index]

    def _prompt(self, request: Request) -> int:
        """The length of its prompt; where rounds make prompts anew, other numbers for each."""
        live = self._scheduler._core.live.get(request.request_id)
        if live is None or not live.dialect.join.asks_again:
            return request.num_prompt_tokens
        return request.num_prompt_tokens + live.family.root.num_joined * self._scheduler.max_model_len

    def _path(self, request: Request) -> Path:
        """The branch of ``request``, however its threads are numbered."""
        path = self._paths.get(request.request_id)
        if path is None:
            entry = self._scheduler._core.threads.get(request.request_id)
            path = self._paths[request.request_id] = (
                (request.request_id,) if entry is None else _path_of(entry[1])
            )
        return path


def logprobs_of(of_requests: Sequence[Sequence[tuple[int, int]]]) -> LogprobsLists:
    """Of each sampled token and the number of its context a row that holds every bit of the number.

    ``of_requests``: these pairs, by request.
    """
    rows = [row for rows in of_requests for row in rows]
    tokens, numbers = np.array(rows, dtype=np.uint64).reshape(-1, 2).T
    parts = (numbers[:, None] >> _SHIFTS) & np.uint64((1 << 22) - 1)
    token_ids = np.concatenate([tokens[:, None], parts[:, 1:] % np.uint64(50)], axis=1)
    return LogprobsLists(
        token_ids.astype(np.int32),
        -1 - parts.astype(np.float32),
        (numbers % np.uint64(9)).astype(np.int32),
        [0, *accumulate(map(len, of_requests))],
    )


def rows_in(logprobs: LogprobsLists) -> list[LogprobsRow]:
    """One a token."""
    token_ids, values, ranks, _ = logprobs
    return [
        (*map(tuple, row), rank)
        for *row, rank in zip(token_ids.tolist(), values.tolist(), ranks.tolist(), strict=True)
    ]


def _path_of(branch: Any) -> Path:
    parent = branch.parent
    if parent is None:
        return (branch.request_id,)
    fork = next(i for i, threads in enumerate(parent.forks) if branch in threads)
    return (*_path_of(parent), fork, branch.sibling_index)
