"""What a request may say about fork/join: the ``forkjoin`` field of its body."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from forkjoin_scheduler.dialect import Limits
from forkjoin_scheduler.errors import BadRequestOptions
from forkjoin_scheduler.patterns import NonEmpty, Regex


class ExplicitBranch(BaseModel):
    """A thread that the request names: what it is called, and the text that it continues from."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    title: str = ""
    text: str = ""

    @model_validator(mode="after")
    def _says_something(self) -> ExplicitBranch:
        if not (self.title or self.text):
            raise ValueError("expected a title or a text")
        return self


class RequestOptions(Limits):
    """The limits of one request, the off switch, what it asks to be forked and shown."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    enabled: bool = Field(default=True, description="false: the same weights decode sequentially")
    include_threads: bool = Field(
        default=False, description="show the threads, in chat completions and responses"
    )
    branches: Annotated[list[ExplicitBranch], Field(min_length=1, max_length=256)] | None = Field(
        default=None, description="threads of the request's own behind its prompt, each goes on from its text"
    )
    closing: NonEmpty | None = Field(
        default=None,
        description="beside branches: what the model goes on from behind them; none: the answer ends there",
    )
    best_of: int | None = Field(
        default=None,
        ge=1,
        le=256,
        description="so many threads from the prompt, each of which answers; the answer of most is taken",
    )
    vote: Regex | None = Field(
        default=None,
        description="beside best_of: the regex of a vote; its last match in a thread counts (the group "
        "`result`, if any)",
    )

    @model_validator(mode="after")
    def _asks_for_one_thing(self) -> RequestOptions:
        if self.branches is not None and self.best_of is not None:
            raise ValueError("expected branches or best_of, got both")
        if self.closing is not None and self.branches is None:
            raise ValueError("expected branches beside closing")
        if (self.best_of is None) != (self.vote is None):
            raise ValueError("expected best_of and vote together")
        return self

    @property
    def forks_at_prompt(self) -> bool:
        """Whether the request itself asks for a fork behind its prompt."""
        return self.branches is not None or self.best_of is not None

    def limits(self, defaults: Limits) -> Limits:
        """``defaults`` with what the request itself set."""
        return defaults.model_copy(update={n: getattr(self, n) for n in self._set_limits()})

    def check_limits(self, defaults: Limits, caps: Limits) -> None:
        """Raise BadRequestOptions naming each limit over the server's own, or too many branches asked for."""
        problems = []
        for name in self._set_limits():
            mine, cap = getattr(self, name), getattr(caps, name)
            if cap is not None and (mine is None or mine > cap):
                flag = f"--{name.replace('_', '-')}"
                problems.append(f"forkjoin.{name}: expected at most {cap}, the server's {flag}, got {mine}")
        wanted, most = self.best_of or len(self.branches or ()), self.limits(defaults).max_threads_per_fork
        if most is not None and wanted > most:
            problems.append(
                f"forkjoin.{'best_of' if self.best_of else 'branches'}: expected at most "
                f"max_threads_per_fork = {most}, got {wanted}"
            )
        if problems:
            raise BadRequestOptions("; ".join(problems))

    def _set_limits(self) -> list[str]:
        return [n for n in Limits.model_fields if n in self.model_fields_set]


def parse_options(value: Any) -> RequestOptions:
    """Validate a ``forkjoin`` object, or its JSON text (vLLM's ``vllm_xargs`` hold no objects).

    Raises BadRequestOptions naming each wrong key.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise BadRequestOptions(f"forkjoin: expected an object or its JSON, {error}") from error
    if not isinstance(value, dict):
        raise BadRequestOptions(f"forkjoin: expected an object, got {type(value).__name__}")
    try:
        return RequestOptions.model_validate(value)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(['forkjoin', *map(str, e['loc'])])}: {e['msg']}, got {e['input']!r}"
            for e in error.errors()
        )
        legal = ", ".join(sorted(RequestOptions.model_fields))
        raise BadRequestOptions(f"{problems}. Legal keys: {legal}") from error
