"""A policy of threads with which joins raise, if the request's prompt says so: policies are loaded by the engine."""

from __future__ import annotations

from typing import Any

from forkjoin_scheduler.machine import joining

#: What a question holds whose join raises.
FAULTY = "6*6"

_join = joining.join


def _raise_or_join(machine: Any, branch: Any) -> Any:
    prompt_ids = machine.request._all_token_ids[: machine.request.num_prompt_tokens]
    if FAULTY in machine.world.tokenizer.decode(list(prompt_ids)):
        raise RuntimeError("a fault for a test")
    return _join(machine, branch)


class RaisesInJoins:
    """All threads run."""

    def __init__(self) -> None:
        joining.join = _raise_or_join

    def choose(self, facts: Any) -> set[str]:
        return {thread.key for thread in facts.threads}
