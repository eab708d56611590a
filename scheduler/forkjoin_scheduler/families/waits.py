"""Why a thread does not run, and when its client hears of it.

A wait before a thread's first step is emitted at once. A later one is emitted when it has lasted some steps:
policies let threads take turns, so a thread may sit out one step and run in the next.
"""

from __future__ import annotations

from collections import Counter
from typing import Literal

#: ``wave``: a later wave of its vote starts it, if the vote needs it; ``dependencies``: it starts when what
#: it depends on has been joined; ``turn``: the policy, or a limit, lets others run first; ``room``: no slot
#: or no KV block is free; ``grammar``: its grammar is compiled.
Wait = Literal["wave", "dependencies", "turn", "room", "grammar"]

#: Steps in a row.
TOLD_AFTER = 8


class Waits:
    """What the client of a family knows of its threads that wait, by their index."""

    def __init__(self) -> None:
        self._emitted: dict[int, Wait] = {}
        self._num_steps: Counter[int] = Counter()

    def see(self, index: int, wait: Wait | None, *, has_begun: bool) -> bool:
        """Note what a thread waits for in a step, None if it runs. Returns whether to emit it.

        What was emitted stands until the thread runs; but the start of its wave or stage is emitted too.
        """
        if wait is None:
            del self._num_steps[index]
            return self._emitted.pop(index, None) is not None
        self._num_steps[index] += 1
        if has_begun and self._num_steps[index] < TOLD_AFTER:
            return False
        before = self._emitted.get(index)
        if before == wait or before not in (None, "wave", "dependencies"):
            return False
        self._emitted[index] = wait
        return True
