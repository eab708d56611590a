"""Where a vote stands: who leads, and whether the threads that have not voted yet can change that.

The answer of a vote is the first thread, in outline order, whose result most threads have. Where two
results have as many votes, the one that stands first wins.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property


@dataclass(frozen=True)
class Tally:
    """The votes so far, by the position of the threads that cast them.

    ``results``: what each thread that has ended voted for; None: it ended without a vote. ``open``: the
    threads that may still vote, whether they run or have not started. A thread that was cut is in neither.

    >>> Tally({0: "7", 1: "7", 2: "4"}, frozenset({3})).is_settled
    True
    """

    results: Mapping[int, str | None]
    open: frozenset[int] = field(default=frozenset())

    @cached_property
    def votes(self) -> Counter[str]:
        """How many threads voted for each result, the one that stands first before the others."""
        return Counter(r for _, r in sorted(self.results.items(), key=_position) if r is not None)

    @cached_property
    def first(self) -> dict[str, int]:
        """The position of the first thread that voted for each result."""
        return {r: p for p, r in sorted(self.results.items(), key=_position, reverse=True) if r is not None}

    @property
    def leader(self) -> str | None:
        """The result that would win now; None: nobody has voted."""
        return max(self.votes, key=self.votes.__getitem__) if self.votes else None

    @property
    def winner(self) -> int | None:
        """The position of the thread that would be the answer now; None: no thread has ended."""
        leader = self.leader
        return min(self.results, default=None) if leader is None else self.first[leader]

    @property
    def is_settled(self) -> bool:
        """Whether the same thread is the answer whatever the open ones vote for, if they vote at all."""
        leader, num_open = self.leader, len(self.open)
        if not self.open:
            return True
        # An open thread that stands before the leader's first may vote as it did, and is shown then.
        if leader is None or min(self.open) < self.first[leader]:
            return False
        own = self.votes[leader]
        # The open ones together may bring up a new result. It stands after the leader's.
        return num_open <= own and all(
            votes + num_open < own or (votes + num_open == own and self.first[leader] < self.first[result])
            for result, votes in self.votes.items()
            if result != leader
        )

    def agreeing(self, num: int) -> Tally:
        """How it would stand if the first ``num`` open threads agreed: with the leader, if there is one."""
        leader = self.leader
        agreed = dict.fromkeys(sorted(self.open)[:num], "" if leader is None else leader)
        return Tally({**self.results, **agreed}, self.open - agreed.keys())


def _position(entry: tuple[int, str | None]) -> int:
    return entry[0]
