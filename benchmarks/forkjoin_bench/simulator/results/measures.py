"""What a simulated run is measured by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field

from forkjoin_bench.simulator.replica.sequence import Cause, Family
from forkjoin_bench.simulator.workload import num_critical, num_generated


@dataclass
class Counts:
    """What a replica counts as it runs."""

    num_steps: int = 0
    busy_s: float = 0.0
    num_rows: int = 0
    num_computed: int = 0
    num_decoded: int = 0
    prefilled: Counter[Cause] = field(default_factory=Counter)
    num_preempted: int = 0
    num_evicted: int = 0
    peak_blocks: int = 0
    ended: list[Family] = field(default_factory=list)
    #: Seconds between two tokens of a sequence, and how many there were of each length.
    gaps: list[tuple[float, int]] = field(default_factory=list)


@dataclass(frozen=True)
class Spread:
    """Of a set of values."""

    mean: float
    p50: float
    p95: float
    p99: float


@dataclass(frozen=True)
class Slo:
    """What a request is to keep: seconds to the first token, and mean seconds a critical token after it."""

    ttft_s: float = 2.0
    token_s: float = 0.05


@dataclass(frozen=True)
class Result:
    """One run; seconds are virtual."""

    num_requests: int
    seconds: float
    latency_s: Spread
    #: Of those that may fork.
    family_latency_s: Spread
    #: Mean seconds a token after the first, of those that may not.
    plain_token_s: Spread
    ttft_s: Spread
    itl_s: Spread
    num_good: int
    goodput_per_s: float
    tokens_per_s: float
    num_steps: int
    rows_per_step: float
    num_generated: int
    num_computed: int
    num_prefilled: int
    prefilled: dict[str, int]
    num_preempted: int
    num_evicted: int
    peak_blocks: int
    busy: float

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def measure(replicas: Iterable[Counts], slo: Slo | None = None) -> Result:
    """What ``replicas`` came to, all together; ``peak_blocks`` is that of the fullest."""
    counts, slo = list(replicas), slo or Slo()
    ended = [family for c in counts for family in c.ended]
    seconds = max((f.ended_at or 0.0 for f in ended), default=0.0)
    num_good = sum(_is_good(f, slo) for f in ended)
    num_steps = sum(c.num_steps for c in counts)
    written = sum(num_generated(f.request.body) for f in ended)
    prefilled: Counter[Cause] = Counter()
    for c in counts:
        prefilled.update(c.prefilled)
    gaps = sorted(gap for c in counts for gap in c.gaps)
    return Result(
        num_requests=len(ended),
        seconds=seconds,
        latency_s=spread([_latency(f) for f in ended]),
        family_latency_s=spread([_latency(f) for f in ended if f.request.may_fork]),
        plain_token_s=spread([_token_s(f) for f in ended if not f.request.may_fork]),
        ttft_s=spread([(f.first_token_at or 0.0) - f.request.arrival for f in ended]),
        itl_s=weighted_spread(gaps),
        num_good=num_good,
        goodput_per_s=num_good / max(seconds, 1e-9),
        tokens_per_s=written / max(seconds, 1e-9),
        num_steps=num_steps,
        rows_per_step=sum(c.num_rows for c in counts) / max(num_steps, 1),
        num_generated=written,
        num_computed=sum(c.num_computed for c in counts),
        num_prefilled=sum(prefilled.values()),
        prefilled={cause.value: prefilled[cause] for cause in Cause},
        num_preempted=sum(c.num_preempted for c in counts),
        num_evicted=sum(c.num_evicted for c in counts),
        peak_blocks=max((c.peak_blocks for c in counts), default=0),
        busy=sum(c.busy_s for c in counts) / max(seconds * len(counts), 1e-9),
    )


def _latency(family: Family) -> float:
    assert family.ended_at is not None
    return family.ended_at - family.request.arrival


def _is_good(family: Family, slo: Slo) -> bool:
    assert family.first_token_at is not None
    return family.first_token_at - family.request.arrival <= slo.ttft_s and _token_s(family) <= slo.token_s


def _token_s(family: Family) -> float:
    """Mean seconds a token of the critical path, after the first."""
    assert family.ended_at is not None
    assert family.first_token_at is not None
    num_behind = max(num_critical(family.request.body) - 1, 1)
    return (family.ended_at - family.first_token_at) / num_behind


def spread(values: Sequence[float]) -> Spread:
    """Mean and percentiles of ``values``."""
    return weighted_spread([(value, 1) for value in sorted(values)])


def weighted_spread(ascending: Sequence[tuple[float, int]]) -> Spread:
    """The same of values that come several times each."""
    total = sum(n for _, n in ascending)
    if not total:
        return Spread(0.0, 0.0, 0.0, 0.0)
    marks, seen = [0.5, 0.95, 0.99], 0
    found: list[float] = []
    for value, n in ascending:
        seen += n
        while len(found) < len(marks) and seen >= marks[len(found)] * total:
            found.append(value)
    return Spread(sum(v * n for v, n in ascending) / total, *found)
