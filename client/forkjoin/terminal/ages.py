"""How long something has been, or will be."""

from __future__ import annotations


def age(seconds: float) -> str:
    """As a table has it.

    >>> age(7.25), age(150)
    ('7.2 s', '2 min')
    """
    return f"{seconds:.1f} s" if seconds < 60 else f"{seconds / 60:.0f} min"
