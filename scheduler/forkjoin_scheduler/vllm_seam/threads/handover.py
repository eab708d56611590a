"""Threads on their way to workers in other processes: what they begin with is written once for all.

vLLM pickles all tokens of each new request, and those of a long context take longer than the rest of a step.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import add
from typing import Any

from vllm.v1.core.sched.output import NewRequestData, SchedulerOutput

from forkjoin_scheduler.vllm_seam.cache.kv_jobs import KVJobs
from forkjoin_scheduler.vllm_seam.core import Core


class Start:
    """The first ``length`` tokens of ``token_ids``, with which several requests of a step begin."""

    def __init__(self, token_ids: list[int], length: int) -> None:
        self._token_ids, self.length = token_ids, length
        self._own: list[int] | None = None

    @property
    def token_ids(self) -> list[int]:
        """The same object each time, which a pickle has once."""
        if self._own is None:
            self._own = self._token_ids[: self.length]
        return self._own


class _Sum:
    """Pickled, it is two lists; read again, it is one."""

    def __init__(self, *parts: list[int]) -> None:
        self._parts = parts

    def __reduce__(self) -> tuple[Any, ...]:
        return add, self._parts


class Begun(NewRequestData):
    """A new request that begins with ``start``. Read from a pickle it is vLLM's own."""

    start: Start | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        state = dict(vars(self))
        start, prompt, prefill = state.pop("start", None), self.prompt_token_ids, self.prefill_token_ids
        if start is not None and prompt is not None and prompt[: start.length] == start.token_ids:
            state["prompt_token_ids"] = _Sum(start.token_ids, prompt[start.length :])
            if prefill == prompt:
                state["prefill_token_ids"] = state["prompt_token_ids"]
        return object.__new__, (NewRequestData,), state

    def __copy__(self) -> Begun:
        twin = object.__new__(Begun)
        vars(twin).update(vars(self))
        return twin


class Handover:
    """Finds which new requests of a step begin alike. Keeps nothing."""

    def __init__(self, core: Core, jobs: KVJobs) -> None:
        self._core = core
        self._jobs = jobs

    def share_starts(self, output: SchedulerOutput) -> None:
        """Let what several threads of a fork begin with be pickled once. Workers here see no difference."""
        alike: dict[tuple[str, int], list[NewRequestData]] = {}
        for new in output.scheduled_new_reqs:
            for of in self._start_of(new.req_id):
                alike.setdefault(of, []).append(new)
        for (_, length), requests in alike.items():
            first = requests[0].prompt_token_ids
            if len(requests) > 1 and first is not None:
                start = Start(first, length)
                for new in requests:
                    new.__class__ = Begun
                    vars(new)["start"] = start

    def _start_of(self, request_id: str) -> Iterable[tuple[str, int]]:
        """The family of a request, and how many tokens it begins with that others may have, too."""
        if entry := self._core.threads.get(request_id):
            yield entry[0].family.request_id, entry[1].fork_len
        elif (job := self._jobs.prefills.get(request_id)) and job.fill is not None:
            num_tokens = len(job.fill.known_hashes) * self._core.scheduler.hash_block_size
            yield job.live.family.request_id, num_tokens
