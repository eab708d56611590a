"""Which dialects fit what is seen of a model: what its files say, or a transcript of it.

Dialects share tags: ``<Parallel>`` is in three of them. So a dialect that fits gives way to one that fits
too, and writes more of the tags that are there. All this is read from what dialects declare, so one of a
user's own takes part like the built-in ones.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from forkjoin_scheduler.dialects.dialect import Dialect
from forkjoin_scheduler.dialects.patterns import fill, find_all

#: Tags that a line of evidence lists.
_LISTED = 6


@dataclass(frozen=True)
class Candidate:
    """A dialect, and what speaks for and against it."""

    dialect: Dialect
    speaks_for: tuple[str, ...]
    speaks_against: tuple[str, ...]
    #: Whether it could be, by itself.
    fits: bool
    #: The tags that were seen, of whichever dialect, and that this one writes.
    explains: frozenset[str] = frozenset()
    #: Whether more than tags speaks for it.
    is_borne_out: bool = False


@dataclass(frozen=True)
class ModelFacts:
    """What the files of a model say that has to do with dialects."""

    #: What it is called: the names it goes by, its architectures.
    names: tuple[str, ...] = ()
    added_tokens: frozenset[str] = frozenset()
    chat_template: str = ""


def fitting(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Those that fit, without those that give way to another."""
    fit = [c for c in candidates if c.fits]
    return [c for c in fit if not any(_goes_before(other, c) for other in fit)]


def _goes_before(one: Candidate, other: Candidate) -> bool:
    if one.is_borne_out < other.is_borne_out:
        return False
    return one.explains > other.explains or (
        one.explains == other.explains and one.is_borne_out > other.is_borne_out
    )


def candidates_of_model(dialects: Sequence[Dialect], facts: ModelFacts) -> list[Candidate]:
    """Each of ``dialects`` that is no variant of another, and what the files of a model say of it."""
    dialects = [dialect for dialect in dialects if dialect.variant_of is None]
    template = frozenset(m for d in dialects for m in marks(d) if m in facts.chat_template)
    seen = template | frozenset(m for d in dialects for m in marks(d) if m in facts.added_tokens)
    return [_of_model(dialect, facts, template, seen) for dialect in dialects]


def _of_model(
    dialect: Dialect, facts: ModelFacts, template: frozenset[str], seen: frozenset[str]
) -> Candidate:
    own, tokens = marks(dialect), dialect.control_tokens
    missing = [token for token in tokens if token not in facts.added_tokens]
    names = [n for n in facts.names if dialect.model_names and find_all(f"(?i){dialect.model_names}", n)]
    speaks_for, against = [f"it is called {name}" for name in dict.fromkeys(names)], []
    if tokens and not missing:
        speaks_for.append(f"its tags are added tokens: {listed(tokens)}")
    if own and (written := [m for m in own if m in template]):
        speaks_for.append(f"the chat template has {listed(written)}")
    if missing:
        against.append(f"no added tokens: {listed(missing)}")
    if dialect.speaks_in_turns and not facts.chat_template:
        against.append("it speaks in turns, and there is no chat template")
    is_shown = bool(names) or (bool(own) and seen.issuperset(own))
    return Candidate(
        dialect,
        tuple(speaks_for),
        tuple(against),
        is_shown and not against,
        frozenset(m for m in seen if writes(dialect, m)),
        bool(names),
    )


def marks(dialect: Dialect) -> tuple[str, ...]:
    """The tags by which ``dialect`` is known: its control tokens; of text, the tags that never vary."""
    if dialect.tags_are == "tokens":
        return dialect.control_tokens
    opens = dialect.outline.opens if dialect.outline is not None else None
    end = dialect.thread.end if dialect.thread.end is None else fill(dialect.thread.end, n="1")
    texts = (*dialect.control_tokens, opens, end, *dialect.swaps)
    return tuple(dict.fromkeys(text.strip() for text in texts if text is not None and text.strip()))


def writes(dialect: Dialect, tag: str) -> bool:
    """Whether ``tag`` is in a text of ``dialect``, with any number where that has a thread's."""
    return any(
        tag in text or ("{n}" in text and re.fullmatch(re.escape(text).replace(r"\{n\}", "[0-9]+"), tag))
        for text in _texts(dialect.model_dump(exclude={"name", "source", "model_names", "variant_of"}))
    )


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from _texts(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _texts(inner)


def listed(tags: Collection[str]) -> str:
    """``tags`` for a reader: the first few, and how many more.

    >>> listed(["<a>", "<b>"])
    '<a>, <b>'
    """
    first = ", ".join(list(tags)[:_LISTED])
    return first if len(tags) <= _LISTED else f"{first} and {len(tags) - _LISTED} more"
