"""Replicas behind a router."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Protocol

from forkjoin_bench.simulator.engine import Engine
from forkjoin_bench.simulator.replica.replica import Replica
from forkjoin_bench.simulator.results.measures import Result, Slo, measure
from forkjoin_bench.simulator.workload import Request


class Router(Protocol):
    """Says which replica a request goes to."""

    def pick(self, request: Request, replicas: Sequence[Replica]) -> Replica:
        """One of ``replicas``, as they are when ``request`` arrives."""
        ...


class RoundRobin:
    """One after the other."""

    def __init__(self) -> None:
        self._turns = count()

    def pick(self, request: Request, replicas: Sequence[Replica]) -> Replica:
        """The next."""
        return replicas[next(self._turns) % len(replicas)]


class LeastLoaded:
    """The one with the fewest requests, the first of several."""

    def pick(self, request: Request, replicas: Sequence[Replica]) -> Replica:
        """The one with the fewest."""
        return min(replicas, key=lambda replica: replica.num_unfinished)


@dataclass(frozen=True)
class SessionAffinity:
    """The replica that has a session's prefix, unless it has over ``slack`` requests more than another."""

    slack: int = 8

    def pick(self, request: Request, replicas: Sequence[Replica]) -> Replica:
        """The session's own; any for a request without one."""
        least = LeastLoaded().pick(request, replicas)
        if not request.session:
            return least
        own = replicas[hash((request.session, 0x9E3779B9)) % len(replicas)]
        return own if own.num_unfinished <= least.num_unfinished + self.slack else least


ROUTERS: dict[str, Callable[[], Router]] = {
    "round-robin": RoundRobin,
    "least-loaded": LeastLoaded,
    "affinity": SessionAffinity,
}


def simulate(
    requests: Iterable[Request],
    engine: Engine,
    *,
    num_replicas: int = 1,
    router: Router | None = None,
    slo: Slo | None = None,
) -> Result:
    """Let ``requests`` run to their ends."""
    router = router or LeastLoaded()
    replicas = [Replica(engine) for _ in range(num_replicas)]
    for request in sorted(requests, key=lambda r: r.arrival):
        for replica in replicas:
            replica.run(until=request.arrival)
        router.pick(request, replicas).submit(request)
    for replica in replicas:
        replica.run()
    return measure((replica.core.counts for replica in replicas), slo)
