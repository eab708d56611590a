"""What is planned while the tokens of a step are booked (``hearing.py``), and done at its end."""

from __future__ import annotations

from dataclasses import dataclass

from vllm.v1.request import Request

from forkjoin_scheduler.machine.fork import ForkPlan


@dataclass(frozen=True, eq=False)
class Fork:
    """``request`` forks behind its first ``num_tokens`` tokens.

    ``since``: how many of them were there before it wrote, or when it forked last. ``num_in_run``: how many
    of those that it wrote in this step stand before the fork.
    """

    request: Request
    plan: ForkPlan
    num_tokens: int
    since: int
    num_in_run: int = 0


@dataclass(frozen=True)
class Swap:
    """``token_ids`` take the place of what stands behind the first ``keep`` tokens of a context."""

    keep: int
    token_ids: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens of the context behind it."""
        return self.keep + len(self.token_ids)
