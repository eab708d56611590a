"""The legal name that is nearest to one that is not."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, legal: Iterable[str]) -> str:
    """The one of ``legal``, which has at least one, that ``name`` was probably meant to be."""
    return difflib.get_close_matches(name, sorted(legal), n=1, cutoff=0)[0]
