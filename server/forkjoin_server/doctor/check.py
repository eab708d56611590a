"""One thing that was looked at: how it is, what was seen, and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Status(str, Enum):
    """How a thing is."""

    OK = "OK"
    #: It will serve, but slower or with less than it could.
    WARN = "WARN"
    #: It will not start, or not serve.
    FAIL = "FAIL"


@dataclass(frozen=True)
class Check:
    """A line of the doctor's."""

    name: str
    status: Status
    seen: str
    #: Empty where there is nothing to do.
    to_do: str = ""

    def __str__(self) -> str:
        told = f"{self.seen}: {self.to_do}" if self.to_do else self.seen
        return f"{self.status.value:<4}  {self.name:<12}  {told}"


def ok(name: str, seen: str) -> Check:
    """``name`` is as it should be."""
    return Check(name, Status.OK, seen)


def warn(name: str, seen: str, to_do: str) -> Check:
    """``name`` could be better."""
    return Check(name, Status.WARN, seen, to_do)


def fail(name: str, seen: str, to_do: str = "") -> Check:
    """``name`` can't be served with."""
    return Check(name, Status.FAIL, seen, to_do)


def size(num_bytes: float) -> str:
    """For a reader, in units of 1024."""
    for unit in ("B", "KiB", "MiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} GiB"
