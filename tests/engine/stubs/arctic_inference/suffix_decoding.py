"""Suffix decoding, plainly: a draft is what stood behind an equal end, here or in a request that has ended."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

from forkjoin_scheduler.lookup import Lookup

_MIN_N, _MAX_N = 2, 6


class SuffixDecodingCache:
    """The texts of requests, as vLLM's proposer keeps them."""

    def __init__(self, max_tree_depth: int, max_cached_requests: int) -> None:
        self._lookup = Lookup(_MIN_N, min(_MAX_N, max_tree_depth))
        self._running: dict[str, list[int]] = {}
        #: Those that have ended.
        self.cached_requests: set[str] = set()

    @property
    def active_requests(self) -> set[str]:
        """Those that run."""
        return set(self._running)

    def evict_cached_response(self, request_id: str) -> None:
        """Forget a request that has ended."""
        self.cached_requests.remove(request_id)

    def start_request(self, request_id: str, prompt_token_ids: Sequence[int]) -> None:
        """A request runs."""
        self._running[request_id] = [int(t) for t in prompt_token_ids]

    def add_active_response(self, request_id: str, token_ids: Sequence[int]) -> None:
        """It has written ``token_ids``."""
        self._running[request_id] += [int(t) for t in token_ids]
        self._lookup.follow(request_id, self._running[request_id])

    def stop_request(self, request_id: str) -> None:
        """It does not run any more."""
        del self._running[request_id]
        self.cached_requests.add(request_id)

    def speculate(
        self, request_id: str, pattern: Sequence[int], max_spec_tokens: int, **_: float
    ) -> SimpleNamespace:
        """What may follow ``pattern``, the end of the text of a request."""
        return SimpleNamespace(token_ids=self._lookup.find([int(t) for t in pattern], max_spec_tokens))
