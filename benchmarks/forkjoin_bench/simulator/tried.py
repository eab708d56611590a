"""Admission policies that were tried and not adopted, so that they can be tried again."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from statistics import fmean

from forkjoin_scheduler.policy.admission import Admission, Future, Need


class Sure(Admission):
    """Lets a request start only if so many times what all are expected to take is free."""

    def __init__(self, times: float) -> None:
        super().__init__()
        self.ENOUGH = times  # where the policy has it


class Outlasting(Sure):
    """Expects of one that has written much what was left for those of the last that wrote more."""

    NUM_LAST = 64

    def __init__(self) -> None:
        super().__init__(1.0)
        self._written: deque[int] = deque(maxlen=self.NUM_LAST)

    def learn(self, need: Need) -> None:
        """A request has ended by itself."""
        super().learn(need)
        if not need.asked:
            self._written.append(need.generated)

    def future(self, need: Need, tokens_per_block: int) -> Future:
        """What is expected of a request; as the policy says if none has written more."""
        expected = super().future(need, tokens_per_block)
        more = [written - need.generated for written in self._written if written > need.generated]
        if need.asked or not more:
            return expected
        left = max(fmean(more), self.tokens.mean * self.LAST_PART)
        to_fork = 0.0 if need.width else self.width.mean
        return replace(
            expected, steps=left / self._width(need), growth=left / tokens_per_block + to_fork + need.lost
        )
