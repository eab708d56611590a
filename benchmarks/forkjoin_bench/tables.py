"""Markdown tables and the numbers in them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join(lines)


def cell(spread: Mapping[str, float] | None, digits: int = 2) -> str:
    """``median (least-greatest)``; the median alone where all are alike, a dash where there is none."""
    if spread is None:
        return "–"
    median, least, greatest = (f"{spread[k]:.{digits}f}" for k in ("median", "least", "greatest"))
    return median if least == greatest else f"{median} ({least}-{greatest})"
