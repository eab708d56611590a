from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forkjoin_scheduler.policy.fair_queue import FairQueue, Ticket

TENANTS = "abc"


@dataclass
class Oracle:
    """The same by looking at everything, each time."""

    waiting: list[Ticket] = field(default_factory=list)
    given: dict[str, float] = field(default_factory=lambda: dict.fromkeys(TENANTS, 0.0))
    last: float = 0.0

    def add(self, ticket):
        others = [self.given[t.tenant] for t in self.waiting]
        if ticket.tenant not in {t.tenant for t in self.waiting}:
            self.given[ticket.tenant] = max(self.given[ticket.tenant], min(others, default=self.last))
        self.waiting.append(ticket)

    def first(self):
        heads = [min(t for t in self.waiting if t.tenant == tenant) for tenant in self.tenants()]
        return min(heads, key=lambda t: (self.given[t.tenant], t.number))

    def tenants(self):
        return {t.tenant for t in self.waiting}

    def take(self, ticket, cost):
        self.waiting.remove(ticket)
        self.given[ticket.tenant] += cost
        self.last = self.given[ticket.tenant]

    def put_back(self, ticket, cost):
        self.waiting.append(ticket)
        self.given[ticket.tenant] -= cost


COSTS = st.integers(1, 64)
MOVES = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sampled_from(TENANTS), st.integers(-1, 1)),
        st.tuples(st.just("take"), COSTS, st.none()),
        st.tuples(st.just("put_back"), COSTS, st.none()),
        st.tuples(st.just("correct"), st.sampled_from(TENANTS), st.integers(-8, 8)),
        st.tuples(st.just("remove"), st.integers(0, 99), st.booleans()),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(MOVES)
def test_any_moves_leave_the_same_first_as_looking_at_everything(moves):
    queue, oracle = FairQueue(), Oracle()
    for number, (move, a, b) in enumerate(moves):
        if move == "add":
            ticket = Ticket(b, number, a, f"r{number}")
            queue.add(ticket)
            oracle.add(ticket)
        elif move == "correct":
            queue.charge(a, b)
            oracle.given[a] += b
        elif oracle.waiting and move == "remove":
            ticket = oracle.waiting.pop(a % len(oracle.waiting))
            queue.remove_all({ticket.item}) if b else queue.remove(ticket)
        elif oracle.waiting:
            ticket = queue.first()
            assert ticket == oracle.first()
            queue.take(ticket, a)
            oracle.take(ticket, a)
            if move == "put_back":
                queue.put_back(ticket, a)
                oracle.put_back(ticket, a)
        assert len(queue) == len(oracle.waiting)
        assert sorted(queue) == sorted(oracle.waiting)
    while oracle.waiting:
        ticket = queue.first()
        assert ticket == oracle.first()
        queue.take(ticket, 1)
        oracle.take(ticket, 1)
    with pytest.raises(IndexError):
        queue.first()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(TENANTS), COSTS), min_size=1, max_size=80), st.randoms())
def test_of_tenants_that_always_wait_none_is_behind_by_more_than_two_requests(extra, rng):
    """However many more one sends, and however big: they differ by the biggest request, at most."""
    queue, biggest, numbers = FairQueue(), 64, iter(range(10**6))
    costs = {}

    def send(tenant, cost):
        number = next(numbers)
        costs[number] = cost
        queue.add(Ticket(0, number, tenant, number))

    for tenant in TENANTS:
        for _ in range(60):
            send(tenant, rng.randint(1, biggest))
    for tenant, cost in extra:
        send(tenant, cost)
    for _ in range(100):
        waiting = {ticket.tenant for ticket in queue}
        if len(waiting) < len(TENANTS):
            break
        ticket = queue.first()
        queue.take(ticket, costs[ticket.number])
        given = [queue.given(tenant) for tenant in TENANTS]
        assert max(given) - min(given) <= biggest


def _started(queue, times, cost):
    order = []
    for _ in range(times):
        ticket = queue.first()
        queue.take(ticket, cost)
        order.append(ticket.item)
    return order


def test_one_tenant_alone_is_served_in_the_order_in_which_it_came():
    queue = FairQueue()
    for number in random.Random(1).sample(range(9), 9):
        queue.add(Ticket(0, number, "a", number))
    assert _started(queue, 9, 5) == list(range(9))


def test_the_urgent_are_first_among_their_own_only():
    queue = FairQueue()
    for number, (tenant, urgency) in enumerate([("a", 0), ("a", -5), ("b", 0), ("a", -5)]):
        queue.add(Ticket(urgency, number, tenant, number))
    assert _started(queue, 4, 1) == [1, 2, 3, 0]


def test_who_sends_one_request_waits_for_no_more_than_one_of_who_sends_a_thousand():
    queue = FairQueue()
    for number in range(1000):
        queue.add(Ticket(0, number, "a", number))
    _started(queue, 10, 100)
    queue.add(Ticket(0, 1000, "b", "b"))
    assert "b" in _started(queue, 2, 100)


def test_who_was_away_has_saved_up_nothing():
    queue = FairQueue()
    for number in range(20):
        queue.add(Ticket(0, number, "a", "a"))
    _started(queue, 10, 100)
    for number in range(20, 40):
        queue.add(Ticket(0, number, "b", "b"))
    assert _started(queue, 8, 100).count("b") == 4


def test_a_request_that_needed_less_than_was_charged_gives_it_back():
    queue = FairQueue()
    for number, tenant in enumerate("abab"):
        queue.add(Ticket(0, number, tenant, tenant))
    assert _started(queue, 2, 100) == ["a", "b"]
    queue.charge("b", -90)
    assert _started(queue, 1, 100) == ["b"]


def test_what_does_not_wait_cannot_be_removed():
    queue = FairQueue()
    queue.add(Ticket(0, 1, "a", "x"))
    with pytest.raises(ValueError, match="does not wait"):
        queue.remove(Ticket(0, 2, "a", "y"))
    with pytest.raises(ValueError, match="does not wait"):
        queue.remove(Ticket(0, 1, "b", "x"))
    assert len(queue) == 1
