"""What the soak found: printed as tables, and checked. Each fault that it finds is a sentence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tests.soak.memory import KIB, MIB, Rest
from tests.soak.outcome import How, Outcome
from tests.soak.watch import Watch, growth

#: What of a server's gauges must be 0 when nothing is asked of it.
IDLE = (
    "vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc", "forkjoin:threads_running",
)  # fmt: skip
#: vLLM's logger of requests that are not valid.
VALIDATION = "vllm.entrypoints.serve.exception_handling.handlers.validation"
#: What a process may have in use at a rest beside what it had at the one before.
MOST_SETTLING_KIB = 256
#: And beside that, per request since then.
MOST_KIB_PER_REQUEST = 1
#: What a process may have resident beside what it had after the warm-up, for memory that no allocator knows of:
#: under load it moves by some 20.
MOST_GROWTH_MIB = 64
#: Descriptors that an idle server may have beside those that it had before: connections that are being closed.
MOST_NEW_FDS = 4
#: How much more CPU time a request may take at last than at first. What else the machine does is not in it.
MOST_SLOWER = 2.0


@dataclass(frozen=True)
class Found:
    """All that the report is made of."""

    outcomes: Sequence[Outcome]
    num_sent: int
    num_compared: int
    faults: Mapping[str, int]
    watch: Watch
    rests: Sequence[Rest]
    fds_before: Mapping[str, int]
    fds_after: Mapping[str, int]
    idle: Mapping[str, float]
    log: str
    seconds: float
    #: Whether the log went on after nobody had read it for a while.
    logs_again: bool = True


def problems(found: Found) -> list[str]:
    """What is not as it must be; empty: all is well."""
    counts = Counter(o.how for o in found.outcomes)
    said = [f"{o.kind}: {o.note}" for o in found.outcomes if o.how is How.FAILED]
    if found.num_sent != len(found.outcomes) or found.num_sent != sum(counts.values()):
        said.append(f"{found.num_sent} requests were sent and {len(found.outcomes)} ended")
    said += [
        f"no request was {how.value}" for how in (How.FINISHED, How.REFUSED, How.CANCELLED) if not counts[how]
    ]
    said += [f"no fault was injected: {name}" for name, count in found.faults.items() if not count]
    if not found.logs_again:
        said.append("nothing was logged any more once nobody had read the log for a while")
    if not found.num_compared:
        said.append("no answer was compared")
    said += _leaks(found)
    said += [f"{name} is {value} on the idle server" for name, value in found.idle.items() if value]
    return said + _logged(found.log) + _slower(found.rests)


def _logged(log: str) -> list[str]:
    """What the log must not have. vLLM logs the traceback of each body that it refuses; those are its own."""
    lines = [line for line in log.splitlines() if "Traceback (most" in line and VALIDATION not in line]
    return [f"the log has a traceback: {line[:2000]}" for line in lines]


def _leaks(found: Found) -> list[str]:
    said = []
    for name in found.watch.processes:
        said += leaked(found.rests, name)
        grown = growth(found.watch.memory(name))
        if grown > MOST_GROWTH_MIB:
            said.append(
                f"{name}: resident memory grew by {grown:.0f} MiB after the warm-up, {MOST_GROWTH_MIB} are allowed"
            )
        more = found.fds_after[name] - found.fds_before[name]
        if more > MOST_NEW_FDS:
            said.append(f"{name}: {more} more file descriptors than before")
    return said


def leaked(rests: Sequence[Rest], name: str) -> list[str]:
    """Whether a process has at every rest more in use than the requests since the one before explain.

    A leak grows from each rest to the next. What the process meets once and keeps, it keeps once.
    """
    parts = [(_grown_kib(before, after, name), _between(before, after)) for before, after in pairwise(rests)]
    if any(grown <= MOST_SETTLING_KIB + MOST_KIB_PER_REQUEST * num for grown, num in parts):
        return []
    grown, num_requests = _grown_kib(rests[0], rests[-1], name), _between(rests[0], rests[-1])
    return [f"{name}: {grown:.0f} KiB more in use at rest after {num_requests} more requests"]


def _grown_kib(before: Rest, after: Rest, name: str) -> float:
    return (after.in_use[name] - before.in_use[name]) / KIB


def _between(before: Rest, after: Rest) -> int:
    return after.num_requests - before.num_requests


def rest_line(rest: Rest) -> str:
    """What each process had in use at a rest."""
    sizes = ", ".join(f"{name} {size / MIB:.2f} MiB" for name, size in rest.in_use.items())
    return f"at rest after {rest.num_requests} requests: {sizes}"


def _slower(rests: Sequence[Rest]) -> list[str]:
    first, *_, last = cpu_ms_each(rests)
    if last <= MOST_SLOWER * first:
        return []
    return [f"a request took {first:.0f} ms of CPU time at first and {last:.0f} ms at last"]


def cpu_ms_each(rests: Sequence[Rest]) -> list[float]:
    """What a request took of the server's CPU time before each of ``rests``, since the one before that."""
    begun = [Rest(0, {}, 0.0), *rests]
    return [1000 * (b.cpu_s - a.cpu_s) / _between(a, b) for a, b in pairwise(begun)]


def table(found: Found) -> str:
    """What was sent and how it ended, what each process took, how long answers took."""
    ways = list(How)
    lines = [
        f"| kind | sent | {' | '.join(h.value for h in ways)} | p50 s | p99 s |",
        "|---|" + "---|" * (len(ways) + 3),
    ]
    kinds = dict.fromkeys(o.kind for o in found.outcomes)
    for kind in [*sorted(kinds), None]:
        mine = [o for o in found.outcomes if kind in (o.kind, None)]
        counts = Counter(o.how for o in mine)
        seconds = sorted(o.seconds for o in mine if o.how is How.FINISHED) or [0.0]
        columns = [
            kind or "all",
            len(mine),
            *(counts[h] for h in ways),
            _quantile(seconds, 0.5),
            _quantile(seconds, 0.99),
        ]
        lines.append(f"| {' | '.join(map(str, columns))} |")
    lines += [
        "",
        "| process | MiB in use at rests | KiB a request | MiB resident | growth (line) | descriptors before | after |",
        "|---|---|---|---|---|---|---|",
    ]
    num_requests = found.rests[-1].num_requests - found.rests[0].num_requests
    for name in found.watch.processes:
        memory, used = found.watch.memory(name), [rest.in_use[name] for rest in found.rests]
        columns = [
            name,
            ", ".join(f"{size / MIB:.2f}" for size in used),
            f"{(used[-1] - used[0]) / KIB / num_requests:+.2f}",
            f"{memory[0][1]:.0f} to {memory[-1][1]:.0f}",
            f"{growth(memory):+.1f}",
            found.fds_before[name],
            found.fds_after[name],
        ]
        lines.append(f"| {' | '.join(map(str, columns))} |")
    faults = ", ".join(f"{name}: {count}" for name, count in found.faults.items())
    each = ", ".join(f"{ms:.0f}" for ms in cpu_ms_each(found.rests))
    lines += ["", f"ms of CPU time a request, until each rest: {each}"]
    lines += ["", f"{found.seconds:.0f} s; answers compared: {found.num_compared}; faults: {faults}"]
    return "\n".join(lines)


def _quantile(ordered: Sequence[float], share: float) -> str:
    return f"{ordered[min(int(share * len(ordered)), len(ordered) - 1)]:.1f}"
