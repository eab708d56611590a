"""What came of an overload, and what does not hold of what must."""

from __future__ import annotations

from dataclasses import dataclass, field

from forkjoin_bench.overload.plan import Plan

#: Outcomes of a request. Lost: none of the others within the time.
OUTCOMES = ("finished", "refused", "failed", "cancelled", "lost")
#: What a process may grow by: an engine keeps blocks of a fixed size, a front end what waits and is unread.
MAX_GROWTH_MIB = 512


@dataclass
class Result:
    """Times in seconds from the moment of sending, memory in MiB by process."""

    outcomes: dict[str, int] = field(default_factory=dict)
    statuses: dict[str, int] = field(default_factory=dict)
    forked: int = 0
    first_token_s: dict[str, float] = field(default_factory=dict)
    finished_s: dict[str, float] = field(default_factory=dict)
    refused_s: dict[str, float] = field(default_factory=dict)
    retry_after_s: dict[str, float] = field(default_factory=dict)
    health_s: dict[str, float] = field(default_factory=dict)
    num_health_failed: int = 0
    memory_mib: dict[str, dict[str, int]] = field(default_factory=dict)
    left: dict[str, float] = field(default_factory=dict)
    #: In what the server wrote until it was told to end.
    num_tracebacks: int = 0
    wall_s: float = 0.0


def problems(plan: Plan, result: Result) -> list[str]:
    """What does not hold of what must."""
    counts, found = result.outcomes, []
    if (total := sum(counts.values())) != plan.requests:
        found.append(f"expected {plan.requests} outcomes, got {total}")
    for outcome in ("failed", "lost"):
        if counts.get(outcome):
            found.append(f"expected no request {outcome}, got {counts[outcome]}")
    if not counts.get("finished"):
        found.append("expected requests to finish, got none")
    if result.num_health_failed or result.health_s.get("max", 0.0) >= plan.health_s:
        worst_s = result.health_s.get("max", 0.0)
        found.append(
            f"expected /health within {plan.health_s:g} s, got {worst_s:.2f} s at most, "
            f"{result.num_health_failed} failures"
        )
    if result.num_tracebacks:
        found.append(f"expected no traceback in the server's log, got {result.num_tracebacks}")
    for name, memory in result.memory_mib.items():
        if memory["peak"] - memory["before"] > MAX_GROWTH_MIB:
            found.append(f"expected {name} to grow by at most {MAX_GROWTH_MIB} MiB, got {memory}")
    if not result.left:
        found.append("expected the server to answer after it, but it had ended")
    found += [f"expected {name} to be 0 after it, got {n:g}" for name, n in result.left.items() if n]
    return found


def spread(values: list[float | None]) -> dict[str, float]:
    """The smallest, the percentiles and the largest of ``values``; empty if there are none."""
    known = sorted(v for v in values if v is not None)
    if not known:
        return {}
    at = {"min": 0.0, "p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    return {name: round(known[round(q * (len(known) - 1))], 3) for name, q in at.items()}
