"""What one client has seen."""

from __future__ import annotations

from dataclasses import dataclass

REFUSALS = (429, 503)


@dataclass
class Told:
    """Times in seconds from the moment of sending; None: it did not come to that."""

    outcome: str = "lost"
    status: int = 0
    first_s: float | None = None
    over_s: float | None = None
    retry_after_s: float | None = None
    has_forked: bool = False
