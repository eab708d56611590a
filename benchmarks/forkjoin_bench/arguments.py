"""What the commands of benchmarks ask of their arguments."""

from __future__ import annotations

from forkjoin_scheduler.errors import UsageError


def check_at_least(*limits: tuple[str, int, int]) -> None:
    """Raise UsageError for the first (flag, given, least) that is given less than its least."""
    for flag, given, least in limits:
        if given < least:
            raise UsageError(f"{flag}: expected at least {least}, got {given}")
