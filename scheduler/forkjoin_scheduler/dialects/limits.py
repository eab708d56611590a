"""How much a request may fork."""

from __future__ import annotations

from pydantic import Field

from forkjoin_scheduler.dialects.strict import Strict

#: More is no number of threads or tokens, and does not fit what engines are sent.
MAX_COUNT = 2**31 - 1


class Limits(Strict):
    """How much a request may fork. ``None``: no limit of its own."""

    max_threads_per_fork: int | None = Field(
        default=50,
        ge=1,
        le=MAX_COUNT,
        description="Threads that one fork may start. For a wider fork the dialect's policy too_many_threads "
        "applies.",
    )
    max_forks: int | None = Field(
        default=16,
        ge=0,
        le=MAX_COUNT,
        description="Forks of one request, including forks inside threads. For further forks the dialect's "
        "policy too_many_forks applies.",
    )
    max_tokens_per_thread: int | None = Field(
        default=None,
        ge=1,
        le=MAX_COUNT,
        description="Tokens that one thread may generate. At the limit the dialect's policy thread_length "
        "applies.",
    )
    max_total_tokens: int | None = Field(
        default=None,
        ge=1,
        le=MAX_COUNT,
        description="Tokens that one answer may generate, all its threads included. The limit also holds for "
        "an answer that does not fork.",
    )
