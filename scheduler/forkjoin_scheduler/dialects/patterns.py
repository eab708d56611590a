"""The texts of a dialect that are more than text: templates with fields, and regular expressions."""

from __future__ import annotations

import gc
import math
import re
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Annotated, Any, Protocol

import re2
import regex
from pydantic import AfterValidator, StringConstraints

from forkjoin_scheduler.excerpt import cut

#: What a search with a pattern that backtracks may take of CPU time. It runs on the engine's thread, on a
#: text that a client may provoke; only a dialect file may have such a pattern.
MATCH_TIMEOUT_S = 0.005
#: What a template may hold: the groups of an outline, a thread's place among those of its fork (``i``, from
#: 0), what the dialect's rule makes of the message, and the turns of the model's chat template: ``begin``
#: begins a chat and a user's turn in it, ``user`` ends the assistant's turn and begins a user's,
#: ``assistant`` the other way round.
FIELDS = ("n", "i", "title", "message", "resolved", "begin", "user", "assistant")
#: Those that are known as soon as the model is.
TURNS = ("begin", "user", "assistant")
#: What braces may be in a template: doubled, they are literal; else a field.
BRACES = re.compile(r"\{\{|\}\}|\{(\w+)\}")


def has_known_fields(template: str, *, known: tuple[str, ...] = FIELDS) -> str:
    """``template``, if its braces are doubled or fields that are ``known``; else raises ValueError."""
    names = [found[1] for found in BRACES.finditer(template) if found[1] is not None]
    if unknown := sorted({name for name in names if name not in known}):
        raise ValueError(f"expected the fields {', '.join(known)}, got {', '.join(unknown)}")
    if re.search("[{}]", BRACES.sub("", template)):
        raise ValueError(
            f"expected each brace to be doubled ({{{{ or }}}}) or part of a field "
            f"({', '.join(f'{{{name}}}' for name in known)}), got {template!r}"
        )
    return template


#: Text with fields in braces, ``{n}`` for a thread's outline number; ``{{`` and ``}}`` are braces.
Template = Annotated[str, AfterValidator(has_known_fields)]
NonEmpty = Annotated[str, StringConstraints(min_length=1)]


def fill(template: str, **fields: str) -> str:
    """``template`` with ``fields`` filled in, the others as they are, and doubled braces single.

    >>> fill("{n}. {title} {{n}}", n="1")
    '1. {title} {n}'
    """
    return BRACES.sub(lambda found: fields.get(found[1], found[0]) if found[1] else found[0][0], template)


def fill_turns(template: str | None, turns: dict[str, str]) -> str | None:
    """The same template without the fields of ``turns``."""
    if template is None:
        return None

    def filled(found: re.Match[str]) -> str:
        value = turns.get(found[1])
        return found[0] if value is None else value.replace("{", "{{").replace("}", "}}")

    return BRACES.sub(filled, template)


#: What a pattern may repeat in all, and how long it may be.
MAX_REPEATS, MAX_PATTERN_CHARS = 1000, 2000
#: Instructions of a client's pattern as RE2 compiles it; ordinary votes have 10 to 60.
MAX_PROGRAM = 100
_COUNTS = re.compile(r"\{([0-9]*),?([0-9]*)\}")
#: Braces that are no count: to the module that searches (``regex``) they may mean something else.
_OTHER_BRACE = re.compile(r"(?<!\\)(?:\\\\)*\{(?![0-9]*,?[0-9]*\})")


def check_regex(value: str, *, needs: tuple[str, ...] = ()) -> str:
    """``value``, if it is a regular expression that searches end in, with one of the groups ``needs``.

    Raises ValueError saying what was expected.
    """
    if len(value) > MAX_PATTERN_CHARS:
        raise ValueError(f"not a regular expression of at most {MAX_PATTERN_CHARS} characters")
    counts = [int(n) for pair in _COUNTS.findall(value) for n in pair if n]
    if math.prod(max(n, 1) for n in counts) > MAX_REPEATS:
        raise ValueError(f"not a regular expression whose counts repeat at most {MAX_REPEATS} times in all")
    if _OTHER_BRACE.search(value):
        raise ValueError("not a regular expression in which { begins a count, or is written as \\{")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # where the two modules may read a pattern differently
            groups = re.compile(value).groupindex
            regex.compile(value)
    except (re.error, regex.error, OverflowError, RecursionError, Warning) as error:
        raise ValueError(f"not a regular expression: {error}") from error
    if needs and groups.keys().isdisjoint(needs):
        raise ValueError(f"expected a group named {' or '.join(map(repr, needs))}")
    return value


Regex = Annotated[str, AfterValidator(check_regex)]


#: A named group of RE2's, which lets two have one name and then reads the first. What is escaped, quoted or
#: in a class is none.
_NAMED_GROUP = re.compile(
    r"\\Q.*?(?:\\E|\Z)|\\.|\[\^?\]?(?:\[:\^?\w+:\]|\\.|[^\]\\])*\]|\(\?P?<(\w+)>", re.DOTALL
)


class Match(Protocol):
    """What RE2's matches and those of ``regex`` have in common."""

    def __getitem__(self, group: str | int) -> Any: ...

    def groupdict(self) -> Mapping[str, Any]: ...

    def start(self) -> int: ...

    def end(self) -> int: ...


def check_linear(value: str) -> str:
    """``value``, if it is a regular expression that RE2 searches for, in time linear in the text.

    Raises ValueError naming what RE2 does not support.
    """
    if len(value) > MAX_PATTERN_CHARS:
        raise ValueError(f"not a regular expression of at most {MAX_PATTERN_CHARS} characters")
    try:
        size = _compiled(value).programsize
    except re2.error as error:
        raise ValueError(
            f"not a regular expression of RE2's, which has no backreferences and does not look around: "
            f"{_reason(error)}"
        ) from error
    if size > MAX_PROGRAM:
        raise ValueError(
            f"not a regular expression of at most {MAX_PROGRAM} instructions, but of {size}: repeat less"
        )
    names = Counter(found[1] for found in _NAMED_GROUP.finditer(value) if found[1])
    if twice := [name for name, num in names.items() if num > 1]:
        raise ValueError(f"expected each group's name once, got {cut(twice[0])} {names[twice[0]]} times")
    return value


#: A regular expression that a client may give.
LinearRegex = Annotated[str, AfterValidator(check_linear)]


def _reason(error: Exception) -> str:
    reason = error.args[0] if error.args else ""
    return reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> Any:
    """``pattern`` as RE2 has it. Raises re2.error for what it does not support."""
    options = re2.Options()
    options.log_errors = False
    options.max_mem = 1 << 20
    return re2.compile(pattern, options)


@lru_cache(maxsize=256)
def program_size(pattern: str) -> int:
    """Instructions of ``pattern``: what a search takes is at most linear in this times the text."""
    size: int = _compiled(pattern).programsize
    return size


@lru_cache(maxsize=256)
def _linear(pattern: str) -> Any | None:
    """``pattern`` as RE2 has it; None where that does not support it, or reads ``$`` otherwise."""
    if "$" in pattern:
        return None
    try:
        return _compiled(pattern)
    except re2.error:
        return None


def find_linear(pattern: str, text: str) -> list[Match]:
    """All matches of ``pattern``, a ``LinearRegex``, in ``text``. ``$`` is also before a last line break."""
    if "$" in pattern:
        text = text.removesuffix("\n")
    return _found(_compiled(pattern), text)


def find_all(pattern: str, text: str) -> list[Match]:
    """All matches of a dialect's ``pattern`` in ``text``, found by RE2.

    What that does not support is left to a search that backtracks: none where it takes longer than
    ``MATCH_TIMEOUT_S``.
    """
    if (linear := _linear(pattern)) is not None:
        return _found(linear, text)
    return _backtracked(pattern, text)


def _backtracked(pattern: str, text: str) -> list[Match]:
    """The search ends by its own work: ``regex`` counts the CPU time of all threads of the process."""
    began, limit_s = time.thread_time(), MATCH_TIMEOUT_S
    with _no_collection():
        while time.thread_time() - began < MATCH_TIMEOUT_S:
            try:
                return list(regex.finditer(pattern, text, timeout=limit_s))
            except TimeoutError:
                limit_s *= 2
    return []


@contextmanager
def _no_collection() -> Iterator[None]:
    """Leave garbage for later: in a large process, to collect it takes longer than a search may."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _found(linear: Any, text: str) -> list[Match]:
    # RE2 reads UTF-8, which half of a surrogate pair has none of
    return list(linear.finditer(text.encode(errors="replace").decode()))
