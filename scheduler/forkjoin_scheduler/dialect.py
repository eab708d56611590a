"""A dialect: the control tokens and rules a model was trained to fork and join with.

Declared in YAML (``configs/dialects/``), validated here, checked against the tokenizer at start.
"""

from __future__ import annotations

import re
from enum import Enum
from importlib import resources
from pathlib import Path
from typing import Protocol

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

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

    #: No fork: the model goes on decoding behind its own outline.
    SEQUENTIAL = "sequential"
    #: The thread gets its end tag and the family joins and goes on.
    CLOSE_THREAD = "close_thread"
    #: The thread gets its end tag, the family joins, and the request ends behind the block.
    END_REQUEST = "end_request"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


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
    """What surrounds a thread's text; ``{n}`` is its outline number."""

    header: str = Field(description="injected before the thread in its own context")
    joined_header: str = Field(description="the header of the 2nd and later threads once joined")
    end: str = Field(description="the token that ends a thread")
    close: str = Field(description="injected when a thread ends without its end token")


class Join(_Strict):
    """What follows the threads."""

    kind: JoinKind = JoinKind.REPREFILL
    text: str = Field(description="injected after the last thread")
    close_block: str = Field(description="written when the request ends at the join")


class Limits(_Strict):
    """How much a request may fork. ``None``: no limit of its own."""

    max_threads_per_fork: int | None = Field(default=50, ge=1)
    max_forks: int | None = Field(default=16, ge=0)
    max_tokens_per_thread: int | None = Field(default=None, ge=1)
    max_total_tokens: int | None = Field(default=None, ge=1)


class Policies(_Strict):
    """The named outcome of each limit and of each malformed output."""

    no_outline: Policy = Policy.SEQUENTIAL
    too_many_threads: Policy = Policy.SEQUENTIAL
    too_many_forks: Policy = Policy.SEQUENTIAL
    thread_eos: Policy = Policy.END_REQUEST
    thread_length: Policy = Policy.END_REQUEST


class Dialect(_Strict):
    """How a family of models forks and joins. Duplicate outline numbers are always dropped."""

    name: str
    source: str
    trigger: str = Field(description="the token that forks")
    outline: Outline
    thread: Thread
    join: Join
    limits: Limits = Limits()
    policies: Policies = Policies()
    #: Further tags that the model writes itself, checked to be one token each.
    tags: tuple[str, ...] = ()

    @property
    def control_tokens(self) -> tuple[str, ...]:
        """Every token that must be one id in the model's vocabulary."""
        return tuple(dict.fromkeys((self.trigger, self.outline.opens, self.thread.end, *self.tags)))

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
