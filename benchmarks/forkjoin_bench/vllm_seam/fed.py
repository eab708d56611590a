"""A scheduler without a model, which is fed tokens as if one had sampled them."""

from __future__ import annotations

import pickle
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from vllm import SamplingParams
from vllm.engine.arg_utils import EngineArgs
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

from forkjoin_bench.inputs.script import Compiled, digest
from forkjoin_scheduler.vllm_seam.scheduler import ForkJoinScheduler


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """How many calls this OS thread makes inside, by ``sys.setprofile``'s names of them."""
    calls: Counter[str] = Counter()

    def count(_: object, event: str, __: object) -> None:
        if event in ("call", "c_call"):
            calls[event] += 1

    sys.setprofile(count)
    try:
        yield calls
    finally:
        sys.setprofile(None)


@dataclass(frozen=True)
class Spent:
    """CPU seconds, and blocks that were hashed in them."""

    seconds: float
    num_hashed: int


@dataclass(frozen=True)
class FedStep:
    """The ids of a step's sequences, and what the scheduler spent before and after the model.

    ``handover_s``: CPU seconds to pickle what ``schedule`` gave for workers in other processes, in
    ``handover_bytes``, and to read it there.
    """

    sequences: tuple[str, ...]
    before: Spent
    after: Spent
    handover_s: float = 0.0
    handover_bytes: int = 0


class Fed:
    """A scheduler, and a stand-in for the model that writes traces."""

    def __init__(self, scheduler: Any, hasher: Any) -> None:
        self._scheduler = scheduler
        self._hasher = partial(self._hash, hasher)
        #: Blocks that were hashed so far.
        self._num_hashed = 0
        #: What to write from a prompt, by the prompt's digest.
        self._script: dict[str, tuple[int, ...]] = {}
        #: What each request writes, and from a prompt of how many tokens.
        self._writing: dict[str, tuple[int, tuple[int, ...]]] = {}

    def ask(self, compiled: Compiled, request_id: str | None = None) -> None:
        """Send a request for ``compiled``; without ``request_id`` it is called as the family is."""
        self._script |= {c.digest: c.continuation for c in compiled.contexts}
        self.ask_for(compiled.prompt_ids, request_id or compiled.family.name)

    def ask_for(self, prompt_ids: list[int], request_id: str) -> None:
        """Send a request for what stands after ``prompt_ids`` in something that was asked for."""
        params = SamplingParams(temperature=0.0, max_tokens=1_000_000)
        params.update_from_generation_config({}, eos_token_id=None)
        request = Request(
            request_id=request_id,
            prompt_token_ids=prompt_ids,
            sampling_params=params,
            pooling_params=None,
            block_hasher=self._hasher,
        )
        self._scheduler.add_request(request)

    def cancel(self, request_ids: Iterable[str]) -> None:
        """End these requests as if their client had gone."""
        self._scheduler.finish_requests(list(request_ids), RequestStatus.FINISHED_ABORTED)

    def step(self) -> tuple[int, float]:
        """One step: how many sequences it had, and the scheduler's CPU seconds."""
        step = self.take_step()
        return len(step.sequences), step.before.seconds + step.after.seconds

    def take_step(self, *, hands_over: bool = False) -> FedStep:
        """One step; ``hands_over``: what handing it to workers takes is measured too."""
        output, before = self.spent(self._scheduler.schedule)
        handover = _hand_over(output) if hands_over else (0.0, 0)
        sampled = self._sample(output)
        _, after = self.spent(partial(self._scheduler.update_from_output, output, sampled))
        return FedStep(tuple(output.num_scheduled_tokens), before, after, *handover)

    def spent(self, do: Callable[[], Any]) -> tuple[Any, Spent]:
        """What ``do`` gives, and what it has spent."""
        num_hashed, began = self._num_hashed, time.thread_time()
        result = do()
        return result, Spent(time.thread_time() - began, self._num_hashed - num_hashed)

    def _hash(self, hasher: Any, request: Any) -> Any:
        hashes = hasher(request)
        self._num_hashed += len(hashes)
        return hashes

    def count(self) -> int:
        """One step: how many functions the scheduler calls in it, those written in C too."""
        with counted() as before:
            output = self._scheduler.schedule()
        sampled = self._sample(output)
        with counted() as behind:
            self._scheduler.update_from_output(output, sampled)
        return before.total() + behind.total()

    def _sample(self, output: Any) -> Any:
        return runner_output(
            {i: self._next(self._scheduler.requests[i]) for i in output.num_scheduled_tokens}
        )

    def _next(self, request: Any) -> list[int]:
        if request.num_computed_tokens < request.num_tokens:
            return []
        if "#fill" in request.request_id:
            return [0]  # it computes KV: its sample is dropped
        length = request.num_prompt_tokens
        known = self._writing.get(request.request_id)
        if known is None or known[0] != length:
            known = length, self._script[digest(request.prompt_token_ids)]
            self._writing[request.request_id] = known
        return [known[1][request.num_output_tokens]]


def _hand_over(output: Any) -> tuple[float, int]:
    """The CPU seconds that ``output`` takes from one process to another, and its bytes."""
    began = time.thread_time()
    sent = pickle.dumps(output, protocol=pickle.HIGHEST_PROTOCOL)
    pickle.loads(sent)  # noqa: S301  # ours, of the line before
    return time.thread_time() - began, len(sent)


def runner_output(token_ids: Mapping[str, list[int]], logprobs: Any = None) -> Any:
    """What a model runner returns that has sampled ``token_ids``, by the ids of their requests.

    ``logprobs``: vLLM's ``LogprobsLists``, a row a request.
    """
    return ModelRunnerOutput(
        req_ids=list(token_ids),
        req_id_to_index={request_id: i for i, request_id in enumerate(token_ids)},
        sampled_token_ids=list(token_ids.values()),
        logprobs=logprobs,
    )


def without_model(make: Any, config: Any, num_blocks: int) -> tuple[Any, Any]:
    """A scheduler of the class ``make`` on so many KV blocks, and what hashes those of its requests.

    ``config`` is vLLM's. No model is loaded: nothing runs what the scheduler schedules.
    """
    config.cache_config.num_gpu_blocks = num_blocks
    block_size = config.cache_config.block_size
    spec = FullAttentionSpec(block_size=block_size, num_kv_heads=6, head_size=32, dtype=torch.bfloat16)
    kv_cache = KVCacheConfig(num_blocks, [], [KVCacheGroupSpec(["layer"], spec)])
    hash_ = get_hash_fn_by_name(config.cache_config.prefix_caching_hash_algo)
    init_none_hash(hash_)
    scheduler = make(config, kv_cache, StructuredOutputManager(config), block_size=block_size)
    return scheduler, get_request_block_hasher(block_size, hash_)


def fed(num_blocks: int, *, stock: bool = False, **options: Any) -> Fed:
    """One of our schedulers, or vLLM's own, on so many KV blocks. ``options``: vLLM's, of an engine."""
    make = AsyncScheduler if stock else ForkJoinScheduler
    return Fed(*without_model(make, EngineArgs(**options).create_engine_config(), num_blocks))
