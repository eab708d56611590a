"""What is made of a run: numbers of one system's answers and steps, and of many runs their middle."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from forkjoin_bench.comparison.steps import CAUSES, Counts
from forkjoin_bench.comparison.traffic import Outcome
from forkjoin_bench.inputs.script import Compiled
from forkjoin_bench.systems.base import Answer
from forkjoin_bench.systems.names import CLIENT_HTTP, rank

#: Answers are good at these multiples of what an idle client loop takes.
SLO_FACTORS = (1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)


@dataclass(frozen=True)
class Run:
    """One system under one load, once: its numbers, and the seconds of each answer that is right."""

    scenario: str
    trace: str
    load: str
    system: str
    round: int
    families: tuple[str, ...]
    values: dict[str, float]
    answer_s: list[float]
    errors: list[str]

    @property
    def group(self) -> tuple[str, str, str, str]:
        """Runs of one group are repetitions of each other."""
        return self.scenario, self.trace, self.load, self.system

    @property
    def pair(self) -> tuple[str, str, str, int, tuple[str, ...]]:
        """Runs of one pair differ in the system only."""
        return self.scenario, self.trace, self.load, self.round, self.families


def values_of(
    outcome: Outcome, counts: Counts, requests: Sequence[Compiled], block_size: int
) -> dict[str, float]:
    """The numbers of a run, by name: ``_s`` are seconds, ``_ms`` milliseconds."""
    right = [a for a in outcome.answers if a.is_right]
    values = {
        "wall_s": outcome.wall_s,
        "right": len(right),
        "wrong": len(outcome.answers) - len(right),
        "steps": counts.steps,
        "decoded": counts.decoded,
        "prefilled": sum(counts.prefilled.values()),
        **{f"prefilled_{cause}": counts.prefilled[cause] for cause in CAUSES},
        "steps_s": counts.busy_s,
        "peak_blocks": counts.peak_blocks,
        "peak_requests": counts.peak_requests,
    }
    if counts.steps:
        values["step_ms"] = 1e3 * counts.busy_s / counts.steps
        values["scheduler_ms"] = 1e3 * counts.scheduler_s / counts.steps
    if outcome.wall_s and right:
        values["requests_per_s"] = len(right) / outcome.wall_s
        values["tokens_per_s"] = num_right_tokens(outcome, requests) / outcome.wall_s
    if len(requests) == 1:
        ideal = requests[0].ideal_blocks(block_size)
        values |= {"ideal_blocks": ideal, "peak_over_ideal": counts.peak_blocks / ideal}
        if counts.busy_s and right:
            values["answer_over_steps"] = outcome.answers[0].seconds / counts.busy_s
    return values | _seen(right) | _transitions(counts)


def num_right_tokens(outcome: Outcome, requests: Sequence[Compiled]) -> int:
    """Tokens of the answers to ``requests`` that are right."""
    pairs = zip(outcome.answers, requests, strict=True)
    return sum(len(request.token_ids) for answer, request in pairs if answer.is_right)


def _seen(right: Sequence[Answer]) -> dict[str, float]:
    """What the clients saw."""
    values: dict[str, float] = {}
    if right:
        seconds = [a.seconds for a in right]
        values |= {"answer_s": statistics.fmean(seconds), "answer_p90_s": quantile(seconds, 0.9)}
    if firsts := [a.first_s for a in right if a.first_s is not None]:
        values["first_token_s"] = statistics.fmean(firsts)
    if gaps := [gap for a in right for gap in a.gaps_s]:
        values |= {
            "gap_p50_ms": 1e3 * statistics.median(gaps),
            "gap_p99_ms": 1e3 * quantile(gaps, 0.99),
            "gap_max_ms": 1e3 * max(gaps),
        }
    return values


def _transitions(counts: Counts) -> dict[str, float]:
    values: dict[str, float] = {}
    for name, transitions in (("fork", counts.forks), ("join", counts.joins)):
        if transitions:
            values[f"{name}_steps"] = statistics.median(t.steps for t in transitions)
            values[f"{name}_steps_max"] = max(t.steps for t in transitions)
            values[f"{name}_ms"] = 1e3 * statistics.median(t.seconds for t in transitions)
            values[f"{name}s_s"] = sum(t.seconds for t in transitions)
    return values


def quantile(values: Iterable[float], share: float) -> float:
    """The least of ``values`` that at least ``share`` of them do not exceed."""
    ordered = sorted(values)
    # rounded: 0.95 of 20 is 19, whatever a float says
    return ordered[max(math.ceil(round(share * len(ordered), 9)) - 1, 0)]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and greatest."""
    return {"median": statistics.median(values), "least": min(values), "greatest": max(values)}


def rows_of(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One row for each group: the spread of each number over its runs.

    ``speedup`` is beside them: the answer time of the client loop over HTTP in the same round over this one.
    """
    groups: dict[tuple[str, str, str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault(run.group, []).append(run)
    seen = list(dict.fromkeys(group[:3] for group in groups))
    rows = []
    for group in sorted(groups, key=lambda g: (seen.index(g[:3]), rank(g[3]))):
        members = groups[group]
        names = dict.fromkeys(name for run in members for name in run.values)
        values = {n: spread([r.values[n] for r in members if n in r.values]) for n in names}
        faster = ratios([r for r in runs if r.group[:3] == group[:3]], CLIENT_HTTP, group[3], "answer_s")
        if faster and group[3] != CLIENT_HTTP:
            values["speedup"] = spread(faster)
        rows.append(
            {
                **dict(zip(("scenario", "trace", "load", "system"), group, strict=True)),
                "runs": len(members),
                "errors": [e for run in members for e in run.errors],
                "values": values,
            }
        )
    return rows


def ratios(runs: Sequence[Run], over: str, under: str, value: str) -> list[float]:
    """``value`` of system ``over`` divided by that of ``under``, for each pair of runs that has both."""
    by_pair = {run.pair: run for run in runs if run.system == under}
    found = []
    for run in runs:
        other = by_pair.get(run.pair)
        if run.system == over and other is not None and other.values.get(value) and value in run.values:
            found.append(run.values[value] / other.values[value])
    return found


def goodput(run: Run, slo_s: float) -> float:
    """Right answers within ``slo_s`` seconds, per second of the run."""
    return sum(s <= slo_s for s in run.answer_s) / run.values["wall_s"]
