"""PASTA: promised parts are written by threads; after a sync each stands where it was promised."""

from __future__ import annotations

import re

from tests.reference_clients.completions import Completions

SYNC, BEGIN, END = "<sync/>", "<async>", "</async>"
_PROMISE = re.compile(r'<promise\s[^<>]*topic="[^"<>]+"[^<>]*/>\Z')


def answer(model: Completions, prompt: str, max_tokens: int | None = None) -> str:
    """All that follows ``prompt`` in the end."""
    #: What its own context has, before the parts that stand open and from the first of them on.
    text, since, num_forks = "", "", 0
    open_parts: list[tuple[int, str]] = []
    while True:
        piece = model.write(prompt + text + since, ["/>"])
        since += piece.text
        if _PROMISE.search(since):
            part = model.write(
                prompt + text + since + BEGIN, [END], branch=f"/{num_forks}.0", max_tokens=max_tokens
            )
            closed = BEGIN + part.text + ("" if part.stop else END)
            open_parts.append((len(since), closed))
            num_forks += 1
        if piece.stop is None or since.endswith(SYNC):
            text, since, open_parts = text + _in_place(since, open_parts), "", []
        if piece.stop is None:
            return text


def _in_place(text: str, parts: list[tuple[int, str]]) -> str:
    for at, part in reversed(parts):
        text = text[:at] + part + text[at:]
    return text
