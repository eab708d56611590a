"""MedVerse: steps that depend on others start when those have ended, and see them.

As its training lays steps out: they run in stages, in the order of the plan, and a step that depends on one of
its own stage begins the next. Their KV is put beside each other, which no client of a stock server can: texts
alone are compared.
"""

from __future__ import annotations

import re

from tests.reference_clients.completions import Completions

TRIGGER, END = "</Plan>", "</Step>"
_STEP = re.compile(r"(?i)Transient Step\s+([0-9]+)\s*:\s*([^;<]+?)\s*;\s*Dependency:\s*\[([^\]]*)\]")


def answer(model: Completions, prompt: str, max_tokens: int | None = None) -> str:
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
        text += "\n<Execution>"
        done, stage = "", set[str]()
        for i, (number, (title, on)) in enumerate(steps.items()):
            if stage & set(re.split(r"[\s,;]+", on)):
                text, done, stage = text + done, "", set()
            stage.add(number)
            header = f"\n<Step> Transient Step {number}: {title}\n"
            branch = f"/{num_forks}.{i}"
            step = model.write(prompt + text + header, [END], branch=branch, max_tokens=max_tokens)
            done += header + step.text + ("" if step.stop else f"\n{END}")
        text += f"{done}\n</Execution>\n<Conclusion>\n"
        since, num_forks = len(text), num_forks + 1
