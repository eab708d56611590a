"""The parent does not wait for its threads, nor see them: their text is put where they began, in the answer.

APAR (the batched one of its clients) and HPD-Parsing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tests.reference_clients.completions import Completions


@dataclass(frozen=True)
class Rules:
    fork: str
    child: str
    #: Whether a thread sees the text that forked.
    sees_fork: bool
    max_depth: int
    #: Newlines that the answer has before a thread whose parent has just named a number, and after any.
    newlines: int = 0
    newlines_behind: int = 0


APAR = Rules("[SplitMask]", "[SplitSop]", sees_fork=True, max_depth=8, newlines=1, newlines_behind=2)
HPD = Rules("<FORK>", "<CHILD>", sees_fork=False, max_depth=1)


class Spliced:
    """The client. ``max_tokens``: of each thread."""

    def __init__(self, model: Completions, rules: Rules, max_tokens: int | None = None) -> None:
        self._model = model
        self._rules = rules
        self._max_tokens = max_tokens

    def answer(self, prompt: str) -> str:
        """All that follows ``prompt`` in the end."""
        return self._branch(prompt, "", 0)

    def _branch(self, start: str, path: str, depth: int) -> str:
        rules, limit = self._rules, self._max_tokens if depth else None
        forks = [rules.fork] * (depth < rules.max_depth)
        shown, context, num_forks, is_behind = "", start, 0, False
        while True:
            piece = self._model.write(context, forks, branch=path, max_tokens=limit)
            context += piece.text
            text = piece.text
            if is_behind:
                text = _with_newlines(text, rules.newlines_behind)
            shown += text
            if piece.stop is None:
                return shown
            seen = context if rules.sees_fork else context.removesuffix(rules.fork)
            thread = self._branch(seen + rules.child, f"{path}/{num_forks}.0", depth + 1)
            if re.search(r"[0-9]+\. ", piece.text):
                thread = _with_newlines(thread, rules.newlines)
            num_forks += 1
            shown += rules.child + thread
            is_behind = True


def _with_newlines(text: str, num: int) -> str:
    """``text``, which begins with ``num`` newlines at least."""
    own = len(text) - len(text.lstrip("\n"))
    return "\n" * max(num - own, 0) + text
