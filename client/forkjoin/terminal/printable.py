"""Text of a model, a server or a file, made fit for a terminal and for an SVG."""

from __future__ import annotations


def printable(text: str) -> str:
    """``text`` without what a terminal would obey: a model may write escape sequences."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


def one_line(text: str) -> str:
    """``text`` as ``printable`` makes it, on one line."""
    return " ".join(printable(text).split())
