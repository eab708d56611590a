"""JSON that others wrote, and what is wrong with it."""

from __future__ import annotations

import json
from typing import Any

from pydantic import ValidationError


def parsed(text: str | bytes) -> Any:
    """What ``text`` says. Raises ValueError if it is no JSON, or nests deeper than Python reads."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it nests too deep") from error


def fault(error: ValidationError) -> str:
    """The first thing that is wrong, and its place."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or 'it'}: {first['msg']}"
