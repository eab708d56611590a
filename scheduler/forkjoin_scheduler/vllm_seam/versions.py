"""What differs between the versions of vLLM that we run on.

Each difference is found in vLLM itself, by a name or an attribute: no version is compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

#: The modules that have had a name, the newest first.
MOVED = {
    "cli_env_setup": ("vllm.entrypoints.common.startup", "vllm.entrypoints.serve.utils.api_utils"),
}


def find(name: str) -> Any:
    """What vLLM calls ``name``, a key of ``MOVED``. Raises ImportError where none of its modules has it."""
    for module in MOVED[name]:
        try:
            return getattr(import_module(module), name)
        except (ModuleNotFoundError, AttributeError):
            continue
    raise ImportError(f"expected {name} in one of {', '.join(MOVED[name])}, found it in none of this vLLM's")


def cli_env_setup() -> None:
    """Set up the environment as vLLM's command line does before it reads its arguments."""
    find("cli_env_setup")()


def num_hashed_blocks(scheduler: Any, num_tokens: int) -> int:
    """Blocks whose hashes the first ``num_tokens`` tokens of a context decide.

    Beside an EAGLE drafter a hash covers the first tokens after its block, too, since 0.33. A hash
    over other tokens than those that follow is never found.
    """
    num_after: int = getattr(scheduler, "num_hash_lookahead_tokens", 0)
    return int(max(num_tokens - num_after, 0) // scheduler.hash_block_size)


def is_between_prefills(scheduler: Any, is_throttled: bool) -> bool:
    """Whether vLLM would hold prefills back in this step, as ``--prefill-schedule-interval`` asks for.

    ``is_throttled``: what the engine says, which it does with data parallelism. Since 0.33 the schedulers
    of all other engines count the steps themselves.
    """
    interval = getattr(scheduler, "local_prefill_interval", 1)
    is_throttled = is_throttled or (
        interval > 1 and scheduler.num_executed_steps + 1 - scheduler.last_prefill_step < interval
    )
    decodes = any(not request.is_prefill_chunk for request in scheduler.running)
    return is_throttled and decodes and not scheduler.prefill_capacity_bound


@contextmanager
def prefills_beside_the_interval(scheduler: Any) -> Iterator[None]:
    """Let vLLM hold no prefills back in a step, and take those of the step for none of its interval's."""
    is_bound, interval = scheduler.prefill_capacity_bound, getattr(scheduler, "local_prefill_interval", None)
    if interval is not None:
        scheduler.local_prefill_interval = 1
    try:
        yield
    finally:
        scheduler.prefill_capacity_bound = is_bound
        if interval is not None:
            scheduler.local_prefill_interval = interval
