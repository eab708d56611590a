"""When each stream's next token is due, for a target of seconds a token.

The n-th token after the first is due n targets after it. What a stream gains by fast steps it may
spend on slow ones; what it loses is forgotten beyond a few targets, or one bad moment would call for
haste forever.
"""

from __future__ import annotations

from collections.abc import Mapping

#: So many targets may a stream be late: one long prompt that is prefilled beside it costs it as many.
FEW = 4


class Deadlines:
    """Keeps the clock of each stream; ``target`` in seconds a token."""

    def __init__(self, target: float) -> None:
        self.target = target
        self._starts: dict[str, float] = {}

    def slack(self, written: Mapping[str, int], now: float) -> float | None:
        """Seconds until the first stream is late, at least minus ``FEW`` targets; None without streams.

        ``written``: tokens of each stream so far; one without any has no deadline yet.
        """
        self._starts = {key: start for key, start in self._starts.items() if key in written}
        slacks = []
        for key, num_tokens in written.items():
            if num_tokens <= 0:
                continue
            start = self._starts.setdefault(key, now - (num_tokens - 1) * self.target)
            slack = start + num_tokens * self.target - now
            if slack < -FEW * self.target:
                self._starts[key] += -FEW * self.target - slack
                slack = -FEW * self.target
            slacks.append(slack)
        return min(slacks, default=None)
