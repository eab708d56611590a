"""What a check saw, and how it is shown."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Result:
    """An operation in one case: how far it was from its reference, and how far it may be."""

    operation: str
    #: Layout, sizes, or what else tells cases apart.
    case: str
    dtype: str
    #: None where the case could not run; ``note`` says why.
    difference: float | None
    bound: float
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether the case is within its bound, or did not run. NaN is not."""
        return self.difference is None or self.difference <= self.bound

    @property
    def verdict(self) -> str:
        """One word for a reader."""
        if self.difference is None:
            return "not run"
        return "ok" if self.ok else "FAILED"

    def as_dict(self) -> dict[str, Any]:
        """For a program."""
        return asdict(self) | {"ok": self.ok}


def not_run(operation: str, why: str) -> Result:
    """``operation`` could not be checked here."""
    return Result(operation, "", "", None, 0, why)


def is_writable(file: Path) -> bool:
    """Whether a report can be written there. Asked before the minutes that its contents take."""
    folder = file.parent
    return folder.is_dir() and os.access(folder, os.W_OK) and not file.is_dir()


def summary(results: Sequence[Result]) -> str:
    """The last line of a report. A case that did not run counts neither way."""
    num_failed = sum(not result.ok for result in results)
    num_ran = sum(result.difference is not None for result in results)
    if not num_ran:
        return f"NOTHING RAN: {len(results)} cases could not"
    verdict = f"{num_failed} FAILED" if num_failed else "all within their bounds"
    num_not_run = len(results) - num_ran
    return f"{num_ran} cases: {verdict}" + (f"; {num_not_run} more did not run" if num_not_run else "")


def table(results: Iterable[Result]) -> str:
    """A line for each operation and dtype, with the case that was furthest from its bound."""
    worst: dict[tuple[str, str], Result] = {}
    num: dict[tuple[str, str], int] = {}
    for result in results:
        key = result.operation, result.dtype
        num[key] = num.get(key, 0) + 1
        if key not in worst or _excess(result) > _excess(worst[key]):
            worst[key] = result
    rows = [("operation", "dtype", "cases", "difference", "bound", "", "furthest from it")]
    for key, result in worst.items():
        seen = "" if result.difference is None else f"{result.difference:.3g}"
        told = "; ".join(filter(None, (result.case, result.note)))
        rows.append((*key, str(num[key]), seen, f"{result.bound:.3g}", result.verdict, told))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    lines = [[*(text.ljust(w) for text, w in zip(row, widths, strict=False)), row[-1]] for row in rows]
    return "\n".join("  ".join(line).rstrip() for line in lines)


def _excess(result: Result) -> tuple[bool, float]:
    """Failures first; of the others, what is nearest to its bound."""
    if result.difference is None:
        return False, float("-inf")
    return not result.ok, result.difference - result.bound
