"""What the server tells the engine core at start: the dialect and the server's limits."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from forkjoin_scheduler.dialect import Dialect, Limits

#: The key of vLLM's ``additional_config`` and of ``SamplingParams.extra_args``.
KEY = "forkjoin"

UNLIMITED = Limits(
    max_threads_per_fork=None, max_forks=None, max_tokens_per_thread=None, max_total_tokens=None
)


class Settings(BaseModel):
    """``additional_config["forkjoin"]``; ``dialect`` None switches fork/join off.

    ``limits`` hold for requests that say nothing; no request may go over ``caps``, the limits
    that the operator gave on the command line.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    dialect: Dialect | None = None
    limits: Limits = Limits()
    caps: Limits = UNLIMITED
    #: Tokens a step in which threads that have ended are prefilled for their join; 0: none.
    join_ahead_tokens: int = Field(default=128, ge=0)

    @classmethod
    def of(cls, dialect: Dialect, given: dict[str, int], **more: Any) -> Settings:
        """The dialect's own limits, with those ``given`` on the command line in their place."""
        return cls(
            dialect=dialect,
            limits=dialect.limits.model_copy(update=given),
            caps=UNLIMITED.model_copy(update=given),
            **more,
        )
