"""The texts of a dialect that are more than text: templates with fields, and regular expressions."""

from __future__ import annotations

import math
import re
import warnings
from typing import Annotated

import regex
from pydantic import AfterValidator, StringConstraints

#: What a search may take, for all threads of a vote together: enough for any sane pattern on any text
#: that a model writes. Either may come from a client, and must not stop the engine.
MATCH_TIMEOUT_S = 0.25
#: What a template may hold: the groups of an outline, what the dialect's rule makes of the message,
#: and the turns of the model's chat template (``begin`` begins a chat and a user's turn in it,
#: ``user`` ends the assistant's turn and begins a user's, ``assistant`` the other way round).
FIELDS = ("n", "title", "message", "resolved", "begin", "user", "assistant")
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


#: A pattern may come from a client: what it may repeat in all, and how long it may be.
MAX_REPEATS, MAX_PATTERN_CHARS = 1000, 2000
_COUNTS = re.compile(r"\{([0-9]*),?([0-9]*)\}")
#: Braces that are no count: to the module that searches (``regex``) they may mean something else.
_OTHER_BRACE = re.compile(r"(?<!\\)(?:\\\\)*\{(?![0-9]*,?[0-9]*\})")


def check_regex(value: str, *, needs: str | None = None) -> str:
    """``value``, if it is a regular expression that searches end in, with the group ``needs``.

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
    if needs is not None and needs not in groups:
        raise ValueError(f"expected a group named {needs!r}")
    return value


Regex = Annotated[str, AfterValidator(check_regex)]


def find_all(pattern: str, text: str, timeout_s: float = MATCH_TIMEOUT_S) -> list[regex.Match[str]]:
    """All matches of ``pattern`` in ``text``; none where the search takes longer than ``timeout_s``."""
    try:
        return list(regex.finditer(pattern, text, timeout=timeout_s))
    except TimeoutError:
        return []
