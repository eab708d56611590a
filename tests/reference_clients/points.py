"""Skeleton-of-Thought: an outline, each point of it written by itself, and the answer is both."""

from __future__ import annotations

import re

from tests.reference_clients.completions import Completions

_POINT = re.compile(r"(?m)^[^\S\n]*([0-9]+)[.)]\s*(\S[^\n]*)")


def answer(model: Completions, prompt: str, point: str, max_tokens: int | None = None) -> str:
    """All that follows ``prompt`` in the end. ``point``: the turn that asks for one, {} for its number."""
    outline = model.write(prompt).text
    text, points = outline, dict[str, str]()
    for number, title in _POINT.findall(outline):
        points.setdefault(number, title)
    for i, (number, title) in enumerate(points.items()):
        context = prompt + outline + point.replace("{}", number) + f"{number}. {title}: "
        written = model.write(context, branch=f"/0.{i}", max_tokens=max_tokens).text
        text += f"\n\n{number}. {title}: {written}"
    return text
