"""MedVerse: steps that depend on others start when those have ended, and see them; or all start at once.

As its training lays steps out, they run in stages, in the order of the plan, and a step that depends on one of its
own stage begins the next. Its released engine starts all at once. Their KV is put beside each other, which no client
of a stock server can: texts alone are compared.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tests.reference_clients.completions import Completions

TRIGGER, END = "</Plan>", "</Step>"
_STEP = re.compile(r"(?i)Transient Step\s+([0-9]+)\s*:\s*([^;<]+?)\s*;\s*Dependency:\s*\[([^\]]*)\]")


@dataclass(frozen=True)
class Rules:
    has_stages: bool
    #: Put before each step but the first.
    between: str
    #: Put after a step that has no end tag.
    close: str


MEDVERSE = Rules(has_stages=True, between="\n", close=f"\n{END}")
#: The released engine, but for the end tags that it leaves out of what is joined.
MEDVERSE_EVAL = Rules(has_stages=False, between="", close="")


def answer(model: Completions, prompt: str, rules: Rules, max_tokens: int | None = None) -> str:
    """All that follows ``prompt`` in the end."""
    text, num_forks, since = "", 0, 0
    while True:
        piece = model.write(prompt + text, [TRIGGER])
        text += piece.text
        if piece.stop is None:
            return text
        steps = dict[str, tuple[str, str]]()
        for number, title, on in _STEP.findall(text[since:]):
            steps.setdefault(number, (title, on))
        if not steps:
            continue
        text += "\n<Execution>\n"
        done, stage = "", set[str]()
        for i, (number, (title, on)) in enumerate(steps.items()):
            if rules.has_stages and stage & set(re.split(r"[\s,;]+", on)):
                text, done, stage = text + done + rules.between, "", set()
            stage.add(number)
            header = f"<Step> Transient Step {number}: {title}\n"
            branch = f"/{num_forks}.{i}"
            step = model.write(prompt + text + header, [END], branch=branch, max_tokens=max_tokens)
            done += (rules.between if done else "") + header + step.text + ("" if step.stop else rules.close)
        text += f"{done}\n</Execution>\n<Conclusion>\n"
        since, num_forks = len(text), num_forks + 1
