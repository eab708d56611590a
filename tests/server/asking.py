"""What tests ask a server for: a worksheet that the embedded model forks over."""

from __future__ import annotations

import random
from typing import Any

from training.prompts import make_worksheet
from training.task import Worksheet


def worksheet(num_threads: int) -> Worksheet:
    """One whose answer has so many threads, and a problem that needs none."""
    return make_worksheet(random.Random(5), num_long=num_threads, num_short=1, held_out=True)


def chat(sheet: Worksheet) -> dict[str, Any]:
    """The body of a chat completion over ``sheet``."""
    return {
        "model": "abacus",
        "temperature": 0,
        "messages": [{"role": "user", "content": sheet.prompt}],
        "max_tokens": 3000,
    }
