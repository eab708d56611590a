"""What pydantic finds wrong in a client's or an operator's fields: where it is, and a sentence of ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from forkjoin_scheduler.excerpt import cut, excerpt

UNKNOWN_KEY = "extra_forbidden"
_SENTENCES = {
    UNKNOWN_KEY: "unknown key",
    "missing": "expected this field, got none",
    "string_unicode": "expected valid Unicode, got half of a surrogate pair",
}


def place(root: str, loc: Sequence[object]) -> str:
    """Where a field is that pydantic names by ``loc``.

    >>> place("forkjoin", ("branches", 0, "title"))
    'forkjoin.branches[0].title'
    """
    return root + "".join(f"[{part}]" if isinstance(part, int) else f".{cut(str(part))}" for part in loc)


def sentence(wrong: Mapping[str, Any]) -> str:
    """What was expected, by one of the errors that pydantic lists."""
    return _SENTENCES.get(wrong["type"]) or str(wrong["msg"]).removeprefix("Value error, ")


def expected_and_got(wrong: Mapping[str, Any], max_chars: int | None = None) -> str:
    """The same, and what was there instead, unless the sentence says so itself or a whole object is wrong.

    ``max_chars``: of the sentence, which may repeat a client's text.
    """
    said = sentence(wrong)
    is_whole = wrong["type"] == UNKNOWN_KEY or not wrong["loc"] or ", got " in said
    said = said if max_chars is None else cut(said, max_chars)
    return said if is_whole else f"{said}, got {excerpt(wrong['input'])}"
