"""Self-consistency: answers that are drawn side by side, and the first of those that most agree with."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from tests.reference_clients.completions import Completions

#: SSFT's six openings, and what its answers vote for.
OPENINGS = tuple(f"<|im_start|><think{n}>\n" for n in range(1, 7))
BOXED = r"\\boxed\s*\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}"


def answer(model: Completions, prompts: Sequence[str], result: str, max_tokens: int | None = None) -> str:
    """The answer. ``prompts``: of each of them; ``result``: the regex of what one votes for."""
    texts = [
        model.write(prompt, branch=f"/0.{i}", max_tokens=max_tokens).text for i, prompt in enumerate(prompts)
    ]
    votes = [found[-1] if (found := re.findall(result, text)) else None for text in texts]
    counted = Counter(vote for vote in votes if vote is not None)
    if not counted:
        return texts[0]
    # most_common has equal ones in the order in which they came
    return texts[votes.index(counted.most_common(1)[0][0])]
