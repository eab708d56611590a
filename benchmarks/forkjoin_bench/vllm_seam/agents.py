"""A scheduler without a model under a steady load, in which agents go on from one long context."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from vllm import SamplingParams
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.request import Request

from forkjoin_bench.vllm_seam.fed import Fed, without_model
from forkjoin_scheduler.settings import KEY
from forkjoin_scheduler.vllm_seam.scheduler import ForkJoinScheduler

#: Of the request that is the context, and of those that load the server.
CONTEXT, LOAD = "context", "load"


@dataclass
class Asked:
    """A request: when it came, tokens of its prompt that were computed, when its first token was there."""

    came: int
    computed: int = 0
    first: int | None = None


class LoadedFed(Fed):
    """Requests of random tokens, so many of the load at a time."""

    def __init__(
        self, scheduler: Any, hasher: Any, num_abreast: int, prompt_tokens: int, tokens: int
    ) -> None:
        super().__init__(scheduler, hasher)
        self._rng = random.Random("kept")
        self._abreast, self._prompt_tokens, self._tokens = num_abreast, prompt_tokens, tokens
        self._num_sent = 0
        self.asked: dict[str, Asked] = {}
        self.now = self.num_preempted = 0

    def tokens(self, num: int) -> list[int]:
        """Ordinary ones: no control token of the embedded model's."""
        return [self._rng.randrange(10, 90) for _ in range(num)]

    def send(self, request_id: str, prompt: list[int], max_tokens: int, **forkjoin: Any) -> Request:
        """Send a request with the field ``forkjoin``."""
        params = SamplingParams(
            temperature=0.0,
            max_tokens=max_tokens,
            ignore_eos=True,
            extra_args={KEY: {"enabled": False, **forkjoin}},
        )
        request = Request(request_id, prompt, params, None, block_hasher=self._hasher)
        self.asked[request_id] = Asked(self.now)
        self._scheduler.add_request(request)
        return request

    def run(self, steps: int) -> None:
        """So many steps, under the load."""
        for _ in range(steps):
            running = sum(i.startswith(LOAD) for i in self._scheduler.requests)
            for _ in range(self._abreast - running):
                self._num_sent += 1
                self.send(f"{LOAD}{self._num_sent}", self.tokens(self._prompt_tokens), self._tokens)
            self.now += 1
            output = self._scheduler.schedule()
            self.num_preempted += len(output.preempted_req_ids or ())
            for request_id, num in output.num_scheduled_tokens.items():
                asked, request = self.asked[request_id], self._scheduler.requests[request_id]
                if asked.first is None:
                    asked.computed += num
                    if request.num_computed_tokens >= request.num_prompt_tokens:
                        asked.first = self.now
            self._scheduler.update_from_output(output, self._sample(output))

    def _next(self, request: Any) -> list[int]:
        return [] if request.num_computed_tokens < request.num_tokens else self.tokens(1)


def loaded(
    num_blocks: int, block_size: int, *, stock: bool, load: tuple[int, int, int], **options: Any
) -> LoadedFed:
    """One of our schedulers, or vLLM's own. ``options``: vLLM's, of an engine.

    ``load``: requests at a time, tokens of each prompt and of each answer.
    """
    config = EngineArgs(**options).create_engine_config()
    config.cache_config.block_size = block_size  # behind vLLM's back, which has no such on a CPU
    config.scheduler_config.async_scheduling = False
    make = AsyncScheduler if stock else ForkJoinScheduler
    return LoadedFed(*without_model(make, config, num_blocks), *load)
