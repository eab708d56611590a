"""A dialect: the control tokens and rules a model was trained to fork and join with.

Declared in YAML (``configs/dialects/``), validated here, checked against the tokenizer at start.
"""

from __future__ import annotations

import re
from enum import Enum
from importlib import resources
from pathlib import Path
from typing import Annotated, Protocol

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from forkjoin_scheduler.errors import DialectError


class Tokenizer(Protocol):
    """What the decisions need of a tokenizer."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: list[int]) -> str: ...

    def token_id(self, token: str) -> int | None:
        """The id of ``token``, or None unless the vocabulary holds it as one token."""


class JoinKind(str, Enum):
    """How the threads come together again."""

    #: The parent's context goes on as the concatenation of the threads, prefilled linearly.
    REPREFILL = "reprefill"


class Policy(str, Enum):
    """What happens at a limit, or on malformed output."""

    #: No fork: the model goes on decoding behind its own text, in which the trigger is ordinary.
    SEQUENTIAL = "sequential"
    #: The repeated outline starts no thread; the others fork.
    DROP = "drop"
    #: The thread gets its end tag and the family joins and goes on.
    CLOSE_THREAD = "close_thread"
    #: What is open is closed (thread, block), and the request ends behind it.
    END_REQUEST = "end_request"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


_FIELD = re.compile(r"\{(\w*)\}")


def _has_known_fields(template: str) -> str:
    unknown = {name for name in _FIELD.findall(template) if name != "n"}
    if unknown:
        raise ValueError(
            f"expected no field but {{n}} (the outline number), got {', '.join(sorted(unknown))}"
        )
    return template


#: Text in which ``{n}`` stands for a thread's outline number.
Template = Annotated[str, AfterValidator(_has_known_fields)]


def fill(template: str, number: str) -> str:
    """``template`` with ``number`` for ``{n}``."""
    return template.replace("{n}", number)


class Outline(_Strict):
    """Where the sub-tasks are announced."""

    opens: str = Field(description="token after whose last occurrence the outlines are read")
    pattern: str = Field(description="regex: group 'number' and, optionally, group 'title'")

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str) -> str:
        try:
            groups = re.compile(value).groupindex
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        if "number" not in groups:
            raise ValueError("expected a group named 'number'")
        return value


class Thread(_Strict):
    """What surrounds a thread's text; ``{n}`` stands for its outline number."""

    header: Template = Field(description="injected before the thread in its own context", min_length=1)
    joined_header: Template = Field(description="the header of the 2nd and later threads once joined")
    end: str = Field(description="the token that ends a thread")
    close: str = Field(description="injected when a thread ends without its end token")


class Join(_Strict):
    """What follows the threads."""

    kind: JoinKind = JoinKind.REPREFILL
    text: str = Field(description="injected after the last thread")
    close_block: str = Field(description="injected in its place when the request ends at the join")


class Limits(_Strict):
    """How much a request may fork. ``None``: no limit of its own."""

    max_threads_per_fork: int | None = Field(
        default=50, ge=1, description="threads of one fork; over it the dialect's policy applies"
    )
    max_forks: int | None = Field(
        default=16, ge=0, description="forks of one request, those inside threads included"
    )
    max_tokens_per_thread: int | None = Field(default=None, ge=1, description="tokens of one thread")
    max_total_tokens: int | None = Field(
        default=None, ge=1, description="tokens that a request may generate, all its threads included"
    )


def _one_of(*allowed: Policy) -> AfterValidator:
    def check(value: Policy) -> Policy:
        if value not in allowed:
            raise ValueError(f"expected {' or '.join(p.value for p in allowed)}, got {value.value}")
        return value

    return AfterValidator(check)


RefusedFork = Annotated[Policy, _one_of(Policy.SEQUENTIAL, Policy.END_REQUEST)]
UnclosedThread = Annotated[Policy, _one_of(Policy.CLOSE_THREAD, Policy.END_REQUEST)]


class Policies(_Strict):
    """The named outcome of each limit and of each malformed output; the defaults are ThreadWeaver's."""

    no_outline: RefusedFork = Policy.SEQUENTIAL
    duplicate_outline: Annotated[Policy, _one_of(Policy.DROP, Policy.SEQUENTIAL, Policy.END_REQUEST)] = (
        Policy.DROP
    )
    too_many_threads: RefusedFork = Policy.SEQUENTIAL
    too_many_forks: RefusedFork = Policy.SEQUENTIAL
    #: The trigger inside a thread, deeper than ``Dialect.max_depth``.
    nested_fork: RefusedFork = Policy.SEQUENTIAL
    #: The prompt and the threads would not fit the context length beside each other.
    no_room: RefusedFork = Policy.SEQUENTIAL
    thread_eos: UnclosedThread = Policy.END_REQUEST
    thread_length: UnclosedThread = Policy.END_REQUEST
    #: The joined context would not fit the model's context length.
    joined_too_long: Annotated[Policy, _one_of(Policy.END_REQUEST)] = Policy.END_REQUEST
    #: ``max_tokens`` or ``max_total_tokens`` ran out inside a fork.
    total_tokens: Annotated[Policy, _one_of(Policy.END_REQUEST)] = Policy.END_REQUEST


class SamplingOverrides(_Strict):
    """Sampling parameters of one phase, where the request itself leaves vLLM's default."""

    temperature: float | None = Field(default=None, ge=0)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, gt=0)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)


class Sampling(_Strict):
    """Sampling overrides by phase: inside threads, and in the request itself behind a join."""

    thread: SamplingOverrides = SamplingOverrides()
    after_join: SamplingOverrides = SamplingOverrides()


class Dialect(_Strict):
    """How a family of models forks and joins."""

    name: str
    source: str
    trigger: str = Field(description="the token that forks")
    #: Where the threads are announced; None: each fork has ``width`` threads with one prompt.
    outline: Outline | None = None
    width: int | None = Field(default=None, ge=1, description="threads of each fork, without an outline")
    thread: Thread
    join: Join
    limits: Limits = Limits()
    policies: Policies = Policies()
    sampling: Sampling = Sampling()
    max_depth: int = Field(default=1, ge=1, description="how deep threads may nest; 1: threads don't fork")
    #: Further tags that the model writes itself, checked to be one token each.
    tags: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _has_outline_or_width(self) -> Dialect:
        if (self.outline is None) == (self.width is None):
            raise ValueError("expected either outline or width, got both or neither")
        return self

    @property
    def control_tokens(self) -> tuple[str, ...]:
        """Every token that must be one id in the model's vocabulary."""
        opens = () if self.outline is None else (self.outline.opens,)
        return tuple(dict.fromkeys((self.trigger, *opens, self.thread.end, *self.tags)))

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Raise DialectError naming each control token that the tokenizer splits or lacks."""
        missing = [t for t in self.control_tokens if tokenizer.token_id(t) is None]
        if missing:
            raise DialectError(
                f"dialect {self.name!r} needs each of its control tokens as one id of the model's "
                f"tokenizer, which splits or lacks {', '.join(missing)}: choose the dialect the "
                "model was trained with (--dialect), or serve it without (--dialect none)"
            )


def parse(text: str, origin: str) -> Dialect:
    """Validate the YAML ``text``. Raises DialectError naming ``origin`` and each wrong field."""
    try:
        return Dialect.model_validate(yaml.safe_load(text))
    except (yaml.YAMLError, ValidationError) as error:
        raise DialectError(f"dialect {origin}: {error}") from error


def builtin_names() -> list[str]:
    """The names of the dialects that come with the package."""
    return sorted(p.name.removesuffix(".yaml") for p in _folder().iterdir() if p.name.endswith(".yaml"))


def load(name_or_path: str) -> Dialect:
    """The built-in dialect of that name, or the file at that path. Raises DialectError."""
    if name_or_path in builtin_names():
        return parse((_folder() / f"{name_or_path}.yaml").read_text(), name_or_path)
    path = Path(name_or_path)
    if not path.is_file():
        raise DialectError(
            f"expected one of {', '.join(builtin_names())} or the path of a YAML file, "
            f"got {name_or_path!r}, which is neither"
        )
    return parse(path.read_text(), str(path))


def _folder() -> Path:
    """The dialect files: inside the wheel, or in the checkout's ``configs/``."""
    packaged = Path(str(resources.files("forkjoin_scheduler"))) / "dialects"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "configs" / "dialects"
