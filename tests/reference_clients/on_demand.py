"""AsyncThink: an organizer starts workers, goes on, and gets what one returns where it asks for it."""

from __future__ import annotations

import re

from tests.reference_clients.completions import Completions

_FORK = re.compile(r"<FORK-([0-9]+)>((?:(?!<FORK-)[\s\S])*?)</FORK-\1>\Z")
#: Stop texts are no patterns: so many workers a client can know of.
_NUMBERS = range(1, 10)


def answer(model: Completions, prompt: str, worker: str, max_tokens: int | None = None) -> str:
    """All that follows ``prompt`` in the end. ``worker``: a worker's prompt, {} for its query."""
    text, results, num_forks = "", dict[str, str](), 0
    stops = ["</ANSWER>", *(tag for n in _NUMBERS for tag in (f"</FORK-{n}>", f"<JOIN-{n}>"))]
    numbers = set[str]()
    while True:
        piece = model.write(prompt + text, stops)
        text += piece.text
        if piece.stop in (None, "</ANSWER>"):
            return text
        if piece.stop.startswith("<JOIN-"):
            number = piece.stop.removeprefix("<JOIN-").removesuffix(">")
            if number in results:
                text += f"{results.pop(number)}</JOIN-{number}>"
            continue
        fork = _FORK.search(text)
        if fork is None or fork[1] in numbers:
            continue
        branch, num_forks = f"/{num_forks}.0", num_forks + 1
        numbers.add(fork[1])
        wrote = model.write(
            worker.replace("{}", fork[2]), ["</RETURN>"], branch=branch, max_tokens=max_tokens
        ).text
        returned = re.findall(r"<RETURN>([\s\S]*?)(?:</RETURN>|\Z)", wrote)
        results[fork[1]] = returned[-1] if returned else ""
