"""How this package changes what vLLM does: one function stands in the place of another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def put_in_place(owner: Any, *functions: Callable[..., Any]) -> None:
    """Put each function in the place of the one of its name in ``owner``, a module or class of vLLM's."""
    for function in functions:
        setattr(owner, function.__name__, function)
