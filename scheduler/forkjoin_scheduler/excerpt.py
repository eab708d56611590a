"""What an error repeats of a client's input: enough to recognise it, never much."""

from __future__ import annotations

import reprlib

#: Of a key or a value. An error that names three of each so repeats at most 200 characters of its input.
MAX_CHARS = 32


def cut(text: str, max_chars: int = MAX_CHARS) -> str:
    """``text`` in at most ``max_chars`` characters.

    >>> cut("abcdefghijk", 10)
    'abcdefg...'
    """
    return text if len(text) <= max_chars else f"{text[: max_chars - 3]}..."


def excerpt(value: object) -> str:
    """``value`` as Python writes it, in at most ``MAX_CHARS`` characters. What is cut off is never written.

    >>> excerpt({"x": "a" * 5_000_000})
    "{'x': 'aaaaaaa...aaaaaaaa'}"
    """
    return cut(_BRIEF.repr(value))


_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxlong = _BRIEF.maxother = 20
_BRIEF.maxdict = _BRIEF.maxlist = _BRIEF.maxlevel = 2
