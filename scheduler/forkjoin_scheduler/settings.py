"""What the server tells the engine core at start: the dialect and the server's limits."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from forkjoin_scheduler.dialect import Dialect, Limits
from forkjoin_scheduler.policy.pruning import Pruning
from forkjoin_scheduler.policy.threads import ThreadPolicy

#: The key of vLLM's ``additional_config`` and of ``SamplingParams.extra_args``.
KEY = "forkjoin"

#: Who may draft tokens for requests that fork.
DraftSource = Literal["drafter", "family"]
UNLIMITED = Limits(
    max_threads_per_fork=None, max_forks=None, max_tokens_per_thread=None, max_total_tokens=None
)


def own_thread_policy(path: str) -> Callable[[], ThreadPolicy]:
    """The class of a user's own at ``path``. Raises ValueError if there is none that chooses threads."""
    made: Callable[[], ThreadPolicy] = _imported(path)
    if not callable(made) or not hasattr(made, "choose"):
        raise ValueError(f"expected a class with a method `choose`, got {made!r}")
    return made


def own_pruning(path: str) -> type[Pruning]:
    """The class of a user's own at ``path``. Raises ValueError if there is none that prunes votes."""
    made: type[Pruning] = _imported(path)
    is_policy = isinstance(made, type) and issubclass(made, Pruning)
    if not is_policy:
        raise ValueError(f"expected a subclass of {Pruning.__module__}.Pruning, got {made!r}")
    return made


def _imported(path: str) -> Any:
    try:
        return pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"expected package.module.Class that can be imported: {error}") from error


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
        description="tokens of ended threads that a step prefills for their join while others run; 0: none",
    )
    admission: Literal["family", "greedy"] = Field(
        default="family",
        description="family: a request starts when its expected need, threads included, fits beside the "
        "running requests; greedy: as soon as its prompt fits, as in vLLM",
    )
    max_threads_running: int | None = Field(
        default=None, ge=1, description="threads of one request that run at a time; the others wait"
    )
    slo_itl_ms: float | None = Field(
        default=None,
        gt=0,
        description="threads sit out steps that would make any stream slower than this many milliseconds a "
        "token",
    )

    thread_policy: str | None = Field(
        default=None,
        description="your own package.module.Class that chooses the threads of a step, like those in "
        "forkjoin_scheduler.policy.threads",
    )

    prune_policy: str | None = Field(
        default=None,
        description="your own package.module.Class that stops threads of votes with prune: own, a subclass "
        "of forkjoin_scheduler.policy.pruning.Pruning",
    )

    draft_from: DraftSource = Field(
        default="drafter",
        description="family: if an ngram or suffix drafter finds nothing in a thread's own context, draft "
        "from its siblings and from the text before the fork",
    )

    max_request_threads: int = Field(
        default=256,
        ge=1,
        description="threads that one request may ask for by branches or best_of, over all its answers",
    )
    max_request_tokens: int | None = Field(
        default=None,
        ge=1,
        description="tokens of all answers to one request; none: those of 256 full contexts",
    )

    control_tokens_in_prompts: Literal["neutralise", "allow", "refuse"] = Field(
        default="neutralise",
        description="what happens to the dialect's control tokens in a chat's messages and tools: "
        "neutralise: they are text; allow: they are control tokens, as in vLLM; refuse: a 400",
    )

    @field_validator("thread_policy")
    @classmethod
    def _can_be_imported(cls, path: str | None) -> str | None:
        if path is not None:
            own_thread_policy(path)
        return path

    @field_validator("prune_policy")
    @classmethod
    def _is_a_policy(cls, path: str | None) -> str | None:
        if path is not None:
            own_pruning(path)
        return path

    @model_validator(mode="after")
    def _has_one_thread_policy(self) -> Settings:
        given = {n: getattr(self, n) for n in ("max_threads_running", "slo_itl_ms", "thread_policy")}
        both = [name for name, value in given.items() if value is not None]
        if len(both) > 1:
            raise ValueError(f"expected one way to choose threads, got {' and '.join(both)}")
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
