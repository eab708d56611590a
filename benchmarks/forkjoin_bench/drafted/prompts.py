"""What is asked of each model, with forks and without."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from forkjoin_scheduler.errors import UsageError

MAX_TOKENS = 3000
TOKENS_A_BRANCH = 64
PASSAGE = (
    "The {kind} stands in {town}. It was built in {year} by {name}, who had studied in Milan. It has "
    "{floors} floors, {doors} doors and a garden. In {later} a fire destroyed the garden, and {name} planted "
    "it again. Today the {kind} is open from May to October, and {visitors} people come to see it every year."
)
TOPICS = ("how it was built", "the fire", "the garden", "the visitors", "its floors and doors", "the seasons")


@dataclass(frozen=True)
class Asked:
    """A prompt. ``forked``, ``sequential``: its ``forkjoin`` field; ``max_tokens``: of either answer."""

    prompt: str
    width: int
    forked: dict[str, Any]
    sequential: dict[str, Any]
    max_tokens: int


def _worksheet(chance: random.Random, width: int) -> Asked:
    """The model forks by itself, into a thread for each multiplication."""
    try:
        from training.prompts import make_worksheet
        from training.task import LETTERS
    except ModuleNotFoundError as error:
        raise UsageError(
            "--model embedded: expected a checkout, whose training task gives its prompts"
        ) from error
    _check_width(width, len(LETTERS))
    sheet = make_worksheet(chance, num_long=width, held_out=True)
    return Asked(sheet.prompt, len(sheet.problems), {}, {"enabled": False}, MAX_TOKENS)


def _passage(chance: random.Random, width: int) -> Asked:
    """Branches that tell of parts of a passage, and a sentence after them; else as many tokens in a row."""
    _check_width(width, len(TOPICS))
    passage = PASSAGE.format(
        kind=chance.choice(("house", "museum", "library", "theatre")),
        town=chance.choice(("Ghent", "Porto", "Lyon", "Turin")),
        name=chance.choice(("Anna Keller", "Jean Moreau", "Rosa Lind")),
        year=chance.randint(1600, 1900),
        later=chance.randint(1901, 1999),
        floors=chance.randint(2, 5),
        doors=chance.randint(10, 90),
        visitors=chance.randint(100, 900) * 100,
    )
    branches = [{"text": f"About {topic}: "} for topic in chance.sample(TOPICS, width)]
    forked = {
        "branches": branches,
        "closing": "\nIn one sentence: ",
        "max_tokens_per_thread": TOKENS_A_BRANCH,
    }
    prompt = f"{passage}\nTell me again, in the words of the text, about each part of it."
    return Asked(prompt, width, forked, {"enabled": False}, TOKENS_A_BRANCH * (width + 1))


def _check_width(width: int, most: int) -> None:
    if width > most:
        raise UsageError(f"--problems: expected at most {most} for this model, got {width}")


#: By the names of the models.
PROMPTS: dict[str, Callable[[random.Random, int], Asked]] = {"embedded": _worksheet, "smollm2": _passage}
