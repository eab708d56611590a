"""How many threads of a vote to start: as many as can decide it if they agree, and more where they don't.

The first wave is the fewest threads that decide the vote if all of them agree. Each thread that then ends
with another result makes more of them necessary, and these start in the same step. A vote is decided when
the whole of it would have the same leader with a probability of ``confidence``; with 1, for certain.

The probability is that of adaptive consistency (arXiv 2305.11860, section 3.2), for a vote that has an
end. Of the two results that lead, the share p of the first is unknown, Beta(1, 1) before anybody votes; so
it is Beta(a + 1, b + 1) after a and b votes, and of the votes to come, beta-binomially many go to the first.
The paper asks whether p > 1/2, which is the same for endlessly many threads.
"""

from __future__ import annotations

from bisect import bisect_left
from functools import lru_cache

from forkjoin_scheduler.policy.tally import Tally


def is_decided(tally: Tally, confidence: float) -> bool:
    """Whether the vote may end: it is settled or, below 1, its leader will win with this probability."""
    return tally.is_settled or (confidence < 1 and chance(tally) >= confidence)


def num_needed(tally: Tally, confidence: float) -> int:
    """The fewest of the open threads that decide the vote, if the first of them vote for its leader.

    All, if that would not. 0: it is decided.
    """
    # the more of them agree, the surer it is
    return bisect_left(
        range(len(tally.open)), True, key=lambda num: is_decided(tally.agreeing(num), confidence)
    )


@lru_cache
def first_wave(num_threads: int, confidence: float) -> int:
    """How many threads of a vote start at once."""
    return num_needed(Tally({}, frozenset(range(num_threads))), confidence)


def chance(tally: Tally) -> float:
    """The probability that the leader wins the whole vote, if the open ones vote for one of the first two."""
    leader = tally.leader
    if leader is None:
        return 0.0
    own, num_open = tally.votes[leader], len(tally.open)
    others = [r for r in tally.votes if r != leader]
    # Of several with as many votes the one that stands first; a new one would stand after the leader.
    rival = max(others, key=tally.votes.__getitem__, default=None)
    against = 0 if rival is None else tally.votes[rival]
    wins_ties = rival is None or tally.first[leader] < tally.first[rival]
    # of the open ones so many at least have to vote for the leader
    least = (against + num_open - own + (1 if wins_ties else 2)) // 2
    return _at_least(least, num_open, own + 1, against + 1)


def _at_least(least: int, num: int, a: int, b: int) -> float:
    """The probability that of ``num`` draws ``least`` or more succeed, each with the same p of Beta(a, b)."""
    # that none does, then one more each time
    weight = 1.0
    for i in range(num):
        weight *= (b + i) / (a + b + i)
    below = 0.0
    for successes in range(min(max(least, 0), num + 1)):
        below += weight
        left = num - successes
        weight *= left / (successes + 1) * (a + successes) / (b + left - 1) if left else 0.0
    return 1.0 - below
