"""What votes are about: sums that a model may get wrong, and how a thread's answer is read."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Subject:
    """Questions for one model. ``vote``: the regex that finds a thread's answer."""

    vote: str
    ask: Callable[[random.Random], str]
    max_tokens: int
    temperature: float


def _product(chance: random.Random) -> str:
    return f"a={chance.randint(100, 999)}*{chance.randint(100, 999)}"


def _story(chance: random.Random) -> str:
    apples, more, eaten = chance.randint(10, 60), chance.randint(10, 60), chance.randint(2, 9)
    return (
        f"Tom has {apples} apples. He buys {more} more and eats {eaten}. How many apples does he have left? "
        "Think step by step. End with the number alone."
    )


#: By the names of the models.
SUBJECTS = {
    "embedded": Subject(r"a=(?P<result>[0-9]+) \(", _product, 400, 1.5),
    "smollm2": Subject(r"(?P<result>[0-9]+)", _story, 160, 0.8),
}
