"""PaCoRe: rounds of answers drawn side by side; what each says after its thinking is a reference for the next."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from tests.reference_clients.completions import Completions


@dataclass(frozen=True)
class Rules:
    """``widths``: answers of each round, one answer follows. ``asks``: with {} twice, for question and references.

    ``refers``: one reference, with {} for its number and for its text.
    """

    widths: Sequence[int]
    asks: str
    refers: str


PACORE = Rules(
    widths=(4, 2),
    asks=(
        "You are given a problem and a list of reference responses. Your job is to analyze these references and "
        "provide your own response.\n\nOriginal Problem:\n{}\n\nReference Responses:\n{}\n\nNow, based on the "
        "original problem and reference responses above, please provide your own comprehensive solution."
    ),
    refers="\nReference {}:\n{}\n",
)


def answer(
    model: Completions, prompt: tuple[str, str, str], rules: Rules, max_tokens: int | None = None
) -> str:
    """The last answer. ``prompt``: the question, and what the chat template writes before and after it."""
    before, question, after = prompt
    asked = question
    for i, width in enumerate(rules.widths):
        context = before + asked + after
        wrote = [model.write(context, branch=f"/{i}.{n}", max_tokens=max_tokens).text for n in range(width)]
        wrote.sort(key=len)
        random.Random(42).shuffle(wrote)
        said = [text.rpartition("</think>")[2] for text in wrote if text]
        asked = rules.asks.format(
            question, "".join(rules.refers.format(n, text) for n, text in enumerate(said, 1))
        )
    return model.write(before + asked + after, num_joins=len(rules.widths)).text
