"""A policy of threads with which joins raise, if the request's prompt says so: policies are loaded by the engine."""

from __future__ import annotations

from typing import Any

from forkjoin_scheduler.vllm_seam.threads.joining import Joins

#: What a question holds whose join raises.
FAULTY = "6*6"

_join = Joins.join


def _raise_or_join(self: Any, live: Any, branch: Any) -> None:
    prompt_ids = live.request._all_token_ids[: live.request.num_prompt_tokens]
    if FAULTY in self._core.tokenizer.decode(list(prompt_ids)):
        raise RuntimeError("a fault for a test")
    _join(self, live, branch)


class RaisesInJoins:
    """All threads run."""

    def __init__(self) -> None:
        Joins.join = _raise_or_join  # type: ignore[method-assign]

    def choose(self, facts: Any) -> set[str]:
        return {thread.key for thread in facts.threads}
