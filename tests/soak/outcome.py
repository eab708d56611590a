"""How a request of the soak ended: in exactly one of four ways."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class How(str, Enum):
    """What a client saw."""

    #: A whole answer, of the right shape.
    FINISHED = "finished"
    #: A 4xx, or a 503 that says when to come again.
    REFUSED = "refused"
    #: The client went away, as it had meant to.
    CANCELLED = "cancelled"
    #: Anything else.
    FAILED = "failed"


@dataclass(frozen=True)
class Outcome:
    """One request: its kind, how it ended, the seconds that took, and what there is to say of it."""

    kind: str
    how: How
    seconds: float
    note: str = ""


class Unfit(Exception):
    """An answer is not of the shape, or not the text, that it must be."""


class Refused(Exception):
    """The server said no, as it may."""


#: A request may be sent again, or was wrong; any other status of 400 and above is a failure.
REFUSALS = frozenset({400, 401, 404, 413, 415, 422, 429, 503})
