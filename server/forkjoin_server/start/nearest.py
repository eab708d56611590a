"""The legal names that are nearest to one that is not."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, legal: Iterable[str]) -> str:
    """The one of ``legal``, which has at least one, that ``name`` was probably meant to be."""
    return nearest_ones(name, legal, 1)[0]


def nearest_ones(name: str, legal: Iterable[str], num: int) -> list[str]:
    """So many of ``legal``, the nearest first."""
    return difflib.get_close_matches(name, sorted(legal), n=num, cutoff=0)
