"""Which family gives its blocks back where nothing can run: the server's policy says."""

from __future__ import annotations

import pytest
from vllm.v1.request import RequestStatus

from forkjoin_scheduler.dialects.files import load
from forkjoin_scheduler.policy.eviction import LastCome
from forkjoin_scheduler.vllm_seam.cache import kv
from forkjoin_server.start.configuration import EMBEDDED_MODEL

pytestmark = pytest.mark.engine


@pytest.fixture
def hand():
    """Three families, ``a`` the oldest, each of which waits for two threads, and holds blocks meanwhile."""
    from tests.engine.by_hand import ByHand

    hand = ByHand(load("explicit"), EMBEDDED_MODEL, filler="y")
    for name in "abc":
        hand.add(name, "q" * 40, forkjoin={"best_of": 2, "vote": "y"})
    hand.steps_until(lambda: all(hand.decodes(f"{name}#1") for name in "abc"))
    return hand


def _holding(hand):
    manager = hand.scheduler.kv_cache_manager
    return [name for name in "abc" if kv.has_blocks(manager, hand.request(name))]


def _end(hand):
    for name in "abc":
        hand.scheduler.finish_requests(name, RequestStatus.FINISHED_ABORTED)
    hand.finish()


def test_the_family_that_came_last_gives_way(hand):
    assert _holding(hand) == ["a", "b", "c"]
    hand.scheduler._eviction.relieve()
    assert _holding(hand) == ["a", "b"]
    hand.scheduler._eviction.relieve()
    assert _holding(hand) == ["a"]
    _end(hand)


def test_a_policy_of_the_users_own_is_told_what_families_hold_and_chooses(hand):
    told = []

    class First:
        def choose(self, facts):
            told.extend(facts)
            return facts[0].key

    hand.scheduler._victims._policy = First()
    hand.scheduler._eviction.relieve()
    assert _holding(hand) == ["b", "c"]
    assert [facts.key for facts in told] == ["a", "b", "c"]
    assert all(facts.num_blocks and facts.written for facts in told)
    _end(hand)


@pytest.mark.parametrize("answer", ["nobody", RuntimeError("a fault for a test")])
def test_a_policy_that_raises_or_names_nobody_is_asked_no_more(hand, answer):
    class Wrong:
        def choose(self, facts):
            if isinstance(answer, Exception):
                raise answer
            return answer

    hand.allowed_errors.add("evict")
    hand.scheduler._victims._policy = Wrong()
    hand.scheduler._eviction.relieve()
    assert _holding(hand) == ["a", "b"]
    assert isinstance(hand.scheduler._victims._policy, LastCome)
    _end(hand)
    assert [event["where"] for event in hand.events("internal_error")] == ["evict"]
