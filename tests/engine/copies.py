"""What workers know of each request: its tokens, and drafts of those to come (speculative decoding).

A worker's copy grows by what it samples itself. Under async scheduling it is ahead of the scheduler, and
nobody takes tokens off it: what a scheduler drops of a run would stay in the copy, and be computed upon.
That is vLLM's V2 runner; V1's is more forgiving.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vllm.v1.outputs import DraftTokenIds
from vllm.v1.request import Request


@dataclass(frozen=True)
class Work:
    """What is computed of a request in a step: its tokens from ``first`` on, the last of them drafts.

    ``tokens``: from the first of its context up to the last that is computed.
    """

    first: int
    tokens: list[int]
    num_drafts: int

    @property
    def drafts(self) -> list[int]:
        """Those of the tokens that nobody has sampled yet."""
        return self.tokens[len(self.tokens) - self.num_drafts :]


def speculation(max_drafts: int) -> dict[str, Any] | None:
    """What makes vLLM's scheduler expect so many drafts; 0: none. Who drafts in truth stands in for it."""
    if not max_drafts:
        return None
    return {"method": "ngram", "num_speculative_tokens": max_drafts, "prompt_lookup_max": 2}


class Copies:
    """The workers' copies for one scheduler. ``max_drafts``: of a request in a step; 0: none is drafted.

    ``share_right``: the chance that a draft is what will be sampled.
    """

    def __init__(self, scheduler: Any, max_drafts: int = 0, share_right: float = 1.0, name: str = "") -> None:
        self._scheduler = scheduler
        self._is_async = scheduler.scheduler_config.async_scheduling
        self._max_drafts, self._share_right = max_drafts, share_right
        self._chance = random.Random(f"{name} drafts")
        self._tokens: dict[str, list[int]] = {}
        #: Made in the step before, of the requests that were in it.
        self._drafts: dict[str, list[int]] = {}
        self._next_drafts: dict[str, list[int]] = {}
        #: Tokens that were accepted beyond the one of each step.
        self.num_accepted = 0

    def step(self, output: Any) -> None:
        """A step begins: take in the requests that are new to the workers."""
        cached = output.scheduled_cached_reqs
        for request_id in (*(r.req_id for r in output.scheduled_new_reqs), *cached.resumed_req_ids):
            self._tokens.pop(request_id, None)
        self._drafts, self._next_drafts = self._next_drafts, {}

    def work(self, output: Any, request: Request) -> Work:
        """What the step computes of ``request``, right behind its scheduling.

        Raises AssertionError if the scheduler takes its context for another than the workers do.
        """
        request_id, num_tokens = request.request_id, output.num_scheduled_tokens[request.request_id]
        drafts = list(output.scheduled_spec_decode_tokens.get(request_id, ()))
        if self._is_async and drafts:  # placeholders, which stay where it was not in the step before
            drafts[:] = [*self._drafts.get(request_id, ()), *drafts][: len(drafts)]
        context = self._tokens.setdefault(request_id, list(request._all_token_ids))
        own = context[: request.num_tokens] if self._is_async else context
        assert own == request._all_token_ids, f"{request_id}: its workers hold other tokens"
        first = request.num_computed_tokens - num_tokens
        if not request.is_prefill_chunk:
            behind = len(context) + len(drafts) - num_tokens
            is_right = behind <= first if self._is_async else behind == first
            assert is_right, f"{request_id}: computed from token {first}, its workers are at {behind}"
            first = behind
        return Work(first, [*context, *drafts][: first + num_tokens], len(drafts))

    def sample(self, request: Request, work: Work, next_token: Callable[[int], int]) -> list[int]:
        """The tokens that a step brings, and drafts for the next. ``next_token``: by its place in the context."""
        context = self._tokens[request.request_id]
        sampled: list[int] = []
        for draft in (*work.drafts, None):
            sampled.append(next_token(len(context)))
            context.append(sampled[-1])
            if draft != sampled[-1]:
                break
        self.num_accepted += len(sampled) - 1
        if self._max_drafts:
            self._next_drafts[request.request_id] = self._draft(len(context), next_token)
        return sampled

    def _draft(self, at: int, next_token: Callable[[int], int]) -> list[int]:
        """Drafts of the tokens from place ``at`` on; without async there may be fewer than there may be at most."""
        num = self._max_drafts if self._is_async else self._chance.randint(0, self._max_drafts)
        right = [next_token(place) for place in range(at, at + num)]
        return [t if self._chance.random() < self._share_right else t + 1 for t in right]

    def drafted(self, request_ids: Sequence[str]) -> DraftTokenIds:
        """What is told the scheduler behind a step without async."""
        return DraftTokenIds(list(request_ids), [list(self._next_drafts.get(i, ())) for i in request_ids])
