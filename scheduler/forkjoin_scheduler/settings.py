"""What the server tells the engine core at start: the dialect and the server's limits."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

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
    join_ahead_tokens: int = Field(
        default=128,
        ge=0,
        description="tokens a step in which threads that have ended are prefilled for their join while "
        "others still run; 0: none",
    )
    admission: Literal["family", "greedy"] = Field(
        default="family",
        description="family: a request starts when what it is expected to need, its threads included, fits "
        "beside what runs; greedy: as soon as its prompt fits, as in vLLM",
    )
    max_threads_running: int | None = Field(
        default=None, ge=1, description="threads of one request that run at a time; the others wait"
    )
    slo_itl_ms: float | None = Field(
        default=None,
        gt=0,
        description="let threads sit out steps where too many would make any stream slower than this many "
        "milliseconds a token",
    )

    @model_validator(mode="after")
    def _has_one_thread_policy(self) -> Settings:
        if self.max_threads_running is not None and self.slo_itl_ms is not None:
            raise ValueError("expected max_threads_running or slo_itl_ms, got both")
        return self

    @classmethod
    def of(cls, dialect: Dialect, given: dict[str, int], **more: Any) -> Settings:
        """The dialect's own limits, with those ``given`` on the command line in their place."""
        return cls(
            dialect=dialect,
            limits=dialect.limits.model_copy(update=given),
            caps=UNLIMITED.model_copy(update=given),
            **more,
        )
