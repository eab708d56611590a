"""Whose request starts next, where those of several tenants (API keys) wait.

Each tenant has a counter of the work that it was given, in tokens over its weight. Next is who has the
lowest: so of tenants that always have something waiting each gets its share, whatever the others send.
One that comes back from having nothing waiting is lifted to the lowest of those that wait: nobody saves
up time, and nobody is punished for having used what nobody else wanted. (The Virtual Token Counter of
"Fairness in Serving Large Language Models", Sheng et al., OSDI 2024, section 4, with its prediction of
lengths: a start is charged with what the request is expected to need, and its end puts that right.)

Of one tenant's requests the most urgent is next, then the oldest. Urgency does not reach across
tenants: who called all of its requests urgent would starve the others.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Container, Iterator
from typing import Generic, NamedTuple, TypeVar

Item = TypeVar("Item")


class Ticket(NamedTuple, Generic[Item]):
    """A waiting request: the smaller is the sooner. ``number`` is its own and rises with the time it came.

    A tuple, because a step compares hundreds of them where thousands wait.
    """

    urgency: int
    number: int
    tenant: str
    item: Item


class FairQueue(Generic[Item]):
    """Tickets that wait, by tenant, and what each tenant was given."""

    def __init__(self) -> None:
        self._waiting: dict[str, list[Ticket[Item]]] = {}
        self._given: dict[str, float] = {}
        self._last_given = 0.0
        #: How many wait.
        self.num = 0

    def __len__(self) -> int:
        return self.num

    def __iter__(self) -> Iterator[Ticket[Item]]:
        """All that wait, each tenant's in its order."""
        return (ticket for tickets in self._waiting.values() for ticket in tickets)

    def given(self, tenant: str) -> float:
        """The counter of ``tenant``."""
        return self._given.get(tenant, 0.0)

    def add(self, ticket: Ticket[Item]) -> None:
        """Let a new request wait."""
        if ticket.tenant not in self._waiting:
            lowest = min(map(self.given, self._waiting), default=self._last_given)
            self._given[ticket.tenant] = max(self.given(ticket.tenant), lowest)
        self._insert(ticket)

    def first(self) -> Ticket[Item]:
        """Who is next. Raises IndexError if nobody waits."""
        if not self.num:
            raise IndexError("nobody waits")
        return min(
            (tickets[0] for tickets in self._waiting.values()),
            key=lambda ticket: (self.given(ticket.tenant), ticket.number),
        )

    def take(self, ticket: Ticket[Item], cost: float) -> None:
        """``ticket`` starts, its tenant is charged with ``cost``. Raises ValueError if it does not wait."""
        self.remove(ticket)
        self.charge(ticket.tenant, cost)
        self._last_given = self.given(ticket.tenant)

    def put_back(self, ticket: Ticket[Item], cost: float) -> None:
        """``ticket``, which was taken at ``cost``, has not started: it is where it was."""
        self.charge(ticket.tenant, -cost)
        self._insert(ticket)

    def charge(self, tenant: str, cost: float) -> None:
        """``tenant`` was given ``cost`` more than it was charged with, or less."""
        self._given[tenant] = self.given(tenant) + cost

    def remove(self, ticket: Ticket[Item]) -> None:
        """``ticket`` waits no more. Raises ValueError if it does not wait."""
        tickets = self._waiting.get(ticket.tenant, [])
        at = bisect_left(tickets, ticket)
        if at == len(tickets) or tickets[at].number != ticket.number:
            raise ValueError(f"{ticket.item!r} does not wait here")
        del tickets[at]
        self.num -= 1
        if not tickets:
            del self._waiting[ticket.tenant]

    def remove_all(self, items: Container[Item]) -> None:
        """Those of ``items`` that wait do so no more."""
        for tenant, tickets in list(self._waiting.items()):
            left = [ticket for ticket in tickets if ticket.item not in items]
            self.num -= len(tickets) - len(left)
            if left:
                self._waiting[tenant] = left
            else:
                del self._waiting[tenant]

    def _insert(self, ticket: Ticket[Item]) -> None:
        insort(self._waiting.setdefault(ticket.tenant, []), ticket)
        self.num += 1
