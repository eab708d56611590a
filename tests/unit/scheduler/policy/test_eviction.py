"""Which family gives way."""

from __future__ import annotations

import itertools

import pytest

from forkjoin_scheduler.policy.eviction import FamilyFacts, LastCome

OLD = FamilyFacts("old", arrival=1)
YOUNG = FamilyFacts("young", arrival=2)
URGENT = FamilyFacts("urgent", priority=-1, arrival=3)


@pytest.mark.parametrize(
    ("families", "victim"),
    [
        ([OLD], "old"),
        ([OLD, YOUNG], "young"),
        ([OLD, YOUNG, URGENT], "young"),
    ],
)
def test_the_least_urgent_that_came_last_gives_way(families, victim):
    for order in itertools.permutations(families):
        assert LastCome().choose(order) == victim
