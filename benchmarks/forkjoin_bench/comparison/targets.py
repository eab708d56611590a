"""The targets against what was measured: one row each, with the command that measures it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import ge, gt, le
from typing import Any, Literal

from forkjoin_bench.comparison.measures import Run, goodput, ratios
from forkjoin_bench.comparison.report import idle_answer_s
from forkjoin_bench.scheduler_cost import FAMILIES, ONE_FAMILY, PLAIN, STOCK
from forkjoin_bench.systems.names import (
    AGAIN,
    AT_ONCE,
    CAPPED,
    CLIENT_HTTP,
    CLIENT_IN_PROCESS,
    FORKJOIN,
    GATE,
    SEQUENTIAL,
    SLACK,
    STITCH,
)
from forkjoin_bench.tables import table
from forkjoin_scheduler.errors import UsageError

OURS = (FORKJOIN, STITCH)
CLIENTS = (CLIENT_HTTP, CLIENT_IN_PROCESS)
#: An answer under load is good within so many times an idle client loop's.
SLO_FACTOR = 4.0
#: How a load of 16 families or more is called.
LOADED = ("c16", "c64")


@dataclass(frozen=True)
class Bound:
    """What each case must be: at least, at most, or more than ``value``."""

    sign: Literal["≥", "≤", ">"]
    value: float

    def holds(self, measured: float) -> bool:
        """Whether ``measured`` keeps to it."""
        return bool({"≥": ge, "≤": le, ">": gt}[self.sign](measured, self.value))

    def worst(self, measured: dict[str, float]) -> str:
        """The case that is the furthest from it."""
        return (max if self.sign == "≤" else min)(measured, key=lambda case: measured[case])

    def __str__(self) -> str:
        return f"{self.sign} {self.value:g}"


@dataclass(frozen=True)
class Target:
    """``measure`` returns one number a case, by the case's name; ``bound`` judges each."""

    name: str
    scenario: str
    bound: Bound
    measure: Callable[[Sequence[Run]], dict[str, float]]


def _of(runs: Sequence[Run], systems: Sequence[str], **fixed: str) -> list[Run]:
    return [
        r
        for r in runs
        if r.system in systems and not r.errors and all(getattr(r, k) == v for k, v in fixed.items())
    ]


def _by_case(values: list[tuple[str, float]]) -> dict[str, float]:
    """The median of each case."""
    cases: dict[str, list[float]] = {}
    for case, value in values:
        cases.setdefault(case, []).append(value)
    return {case: statistics.median(found) for case, found in cases.items()}


def _each_trace(
    value: Callable[[dict[str, float]], float | None],
) -> Callable[[Sequence[Run]], dict[str, float]]:
    """A number of our systems' own idle runs, by system and trace."""

    def measure(runs: Sequence[Run]) -> dict[str, float]:
        own = _of(runs, OURS, scenario="idle")
        found = [(f"{r.system}, {r.trace}", value(r.values)) for r in own]
        return _by_case([(case, number) for case, number in found if number is not None])

    return measure


def _over(
    value: str, systems: Sequence[str], others: Sequence[str], **fixed: str
) -> Callable[[Sequence[Run]], dict[str, float]]:
    """How many times ``others`` take what ``systems`` do, by pair of systems and trace."""

    def measure(runs: Sequence[Run]) -> dict[str, float]:
        found = {}
        chosen = _of(runs, (*systems, *others), **fixed)
        for system in systems:
            for other in others:
                for trace in dict.fromkeys(r.trace for r in chosen):
                    if pairs := ratios([r for r in chosen if r.trace == trace], other, system, value):
                        found[f"{other} / {system}, {trace}"] = statistics.median(pairs)
        return found

    return measure


def _gated(runs: Sequence[Run]) -> dict[str, float]:
    """The client loop with its best gate, over ours, in wall time."""
    own = _of(runs, tuple({r.system for r in runs}), scenario="pressure")
    gates = {r.system for r in own if r.system.startswith(GATE)}
    walls = {g: statistics.median(r.values["wall_s"] for r in own if r.system == g) for g in gates}
    if not walls:
        return {}
    best = min(walls, key=lambda gate: walls[gate])
    return _over("wall_s", OURS, (best,), scenario="pressure")(runs)


def _goodput(runs: Sequence[Run]) -> dict[str, float]:
    """Ours over the client loop over HTTP; where that has none, any of ours is infinitely more."""
    base = idle_answer_s(runs)
    if base is None:
        return {}
    found = {}
    for load in LOADED:
        of_load = _of(runs, (*OURS, CLIENT_HTTP), scenario="load", load=load)
        rates = _by_case([(r.system, goodput(r, SLO_FACTOR * base)) for r in of_load])
        theirs = rates.pop(CLIENT_HTTP, None)
        for system, rate in rates.items():
            if theirs is not None:
                found[f"{system}, {load}"] = rate / theirs if theirs else float("inf") if rate else 0.0
    return found


def _in_time(runs: Sequence[Run]) -> dict[str, float]:
    """Answers that keep to the SLO, with the slack policy over those with the best of the others, by load."""
    found = {}
    for load in dict.fromkeys(r.load for r in _of(runs, (SLACK,), scenario="goodput")):
        of_load = _of(runs, (FORKJOIN, CAPPED, SLACK), scenario="goodput", load=load)
        shares = _by_case([(r.system, r.values["in_time"]) for r in of_load])
        own = shares.pop(SLACK)
        if any(shares.values()):
            found[load] = own / max(shares.values())
    return found


def _stall(runs: Sequence[Run]) -> dict[str, float]:
    chosen = _of(runs, (FORKJOIN, STITCH, AT_ONCE), scenario="join-stall")
    return {
        f"{system} / {AT_ONCE}, {trace}": statistics.median(pairs)
        for system in OURS
        for trace in dict.fromkeys(r.trace for r in chosen)
        if (pairs := ratios([r for r in chosen if r.trace == trace], system, AT_ONCE, "join_ms"))
    }


def _plain(value: str, ours: str = FORKJOIN) -> Callable[[Sequence[Run]], dict[str, float]]:
    """``value`` of ``ours`` over that of each stock server, by load."""

    def measure(runs: Sequence[Run]) -> dict[str, float]:
        chosen = _of(runs, (FORKJOIN, SEQUENTIAL, AGAIN), scenario="plain")
        return {
            f"{ours} / {stock}, {load}": statistics.median(pairs)
            for stock in (SEQUENTIAL, AGAIN)
            for load in dict.fromkeys(r.load for r in chosen)
            if stock != ours and (pairs := ratios([r for r in chosen if r.load == load], ours, stock, value))
        }

    return measure


def _stock_against_stock(runs: Sequence[Run]) -> dict[str, float]:
    """What two stock servers differ by in plain traffic, in the median: what no comparison can tell apart."""
    values = {
        "throughput": "requests_per_s",
        "step time": "step_ms",
        "CPU time": "cpu_ms",
        "HTTP": "front_cpu_ms",
    }
    return {
        f"{name}, {case}": ratio
        for name, value in values.items()
        for case, ratio in _plain(value, AGAIN)(runs).items()
    }


def _recomputed(values: dict[str, float]) -> float:
    return values["prefilled_tail"] + values["prefilled_recomputed"]


def most_to_gain(run: Run) -> float:
    """How many times as fast ``run`` would be if its forks and joins took no time at all.

    No server can do better on the same steps: the rest is decoding, and the prefill of the prompt.
    """
    between = run.values.get("forks_s", 0.0) + run.values.get("joins_s", 0.0)
    return run.values["answer_s"] / (run.values["answer_s"] - between)


def _bounds(runs: Sequence[Run]) -> dict[str, float]:
    """For each trace and client loop, the most that forks and joins leave to be gained."""
    idle = _of(runs, CLIENTS, scenario="idle")
    return _by_case([(f"{r.system}, {r.trace}", most_to_gain(r)) for r in idle])


TARGETS = (
    Target("prefix tokens recomputed at forks", "idle", Bound("≤", 0), _each_trace(_recomputed)),
    Target(
        "steps from the trigger to the threads' first",
        "idle",
        Bound("≤", 1),
        _each_trace(lambda v: v.get("fork_steps_max")),
    ),
    Target(
        "peak KV blocks / ideal", "idle", Bound("≤", 1.02), _each_trace(lambda v: v.get("peak_over_ideal"))
    ),
    Target(
        "answer / the sum of its steps, one idle stream",
        "idle",
        Bound("≤", 1.05),
        _each_trace(lambda v: v.get("answer_over_steps")),
    ),
    Target(
        "answer time, clients / ours, one idle stream",
        "idle",
        Bound(">", 1),
        _over("answer_s", OURS, CLIENTS, scenario="idle"),
    ),
    Target(
        "the same, stitched, 8x64",
        "idle",
        Bound("≥", 1.2),
        _over("answer_s", (STITCH,), CLIENTS, scenario="idle", trace="8x64"),
    ),
    Target(
        "the same, re-prefilled, 8x64",
        "idle",
        Bound("≥", 1.1),
        _over("answer_s", (FORKJOIN,), CLIENTS, scenario="idle", trace="8x64"),
    ),
    Target(
        "answer time, client-http / ours, fork-heavy",
        "idle",
        Bound("≥", 1.5),
        _over("answer_s", OURS, (CLIENT_HTTP,), scenario="idle", trace="fork-heavy"),
    ),
    Target(
        f"goodput within {SLO_FACTOR:g}× an idle client's answer, ours / client-http",
        "load",
        Bound("≥", 1.5),
        _goodput,
    ),
    Target(
        "wall time, clients / ours, a third of the KV",
        "pressure",
        Bound("≥", 1.4),
        _over("wall_s", OURS, CLIENTS, scenario="pressure"),
    ),
    Target(
        "mean latency, clients / ours, a third of the KV",
        "pressure",
        Bound("≥", 2),
        _over("answer_s", OURS, CLIENTS, scenario="pressure"),
    ),
    Target("wall time, best gated client / ours", "pressure", Bound("≥", 1), _gated),
    Target("answers in time, slack / the best other policy", "goodput", Bound("≥", 1), _in_time),
    Target("join stall / that of the plain join", "join-stall", Bound("≤", 0.3), _stall),
    Target("plain throughput, ours / stock", "plain", Bound("≥", 0.98), _plain("requests_per_s")),
    Target("plain step time, ours / stock", "plain", Bound("≤", 1.02), _plain("step_ms")),
    Target("CPU time of the server, plain, ours / stock", "plain", Bound("≤", 1.02), _plain("cpu_ms")),
)


#: Nothing but noise above linear.
MAX_EXPONENT = 1.05


def markdown(results: Sequence[tuple[dict[str, Any], Sequence[Run]]]) -> str:
    """A table of all targets for each result: of ``run``, ``scheduler`` or ``simulate goodput``.

    Raises UsageError for one of another command.
    """
    return "\n\n".join(_of_any(result, runs) for result, runs in results)


def _of_any(result: dict[str, Any], runs: Sequence[Run]) -> str:
    if "goodput" in result:
        return _of_goodput(result["goodput"])
    if "costs" in result:
        return _of_scheduler(result)
    if "model" not in result:
        raise UsageError(
            "targets: expected results of `forkjoin bench run`, `forkjoin bench scheduler` or "
            "`forkjoin bench simulate goodput`, got one of another command"
        )
    return _of_run(result, runs)


def _of_run(result: dict[str, Any], runs: Sequence[Run]) -> str:
    command = f"`forkjoin bench run --model {result['model']} --scenario {{}}`"
    judged = [(t.name, t.bound, t.measure(runs), command.format(t.scenario)) for t in TARGETS]
    text = _tables(result["model"], judged)
    if bounds := _bounds(runs):
        rows = [[case, f"{bound:.3g}"] for case, bound in bounds.items()]
        text += (
            "\n\nThe most that can be gained over each client, if forks and joins took no time at all:\n\n"
        )
        text += table(["client, trace", "times as fast"], rows)
    if noise := _stock_against_stock(runs):
        text += "\n\nStock against stock, which a target of plain traffic can't be told from:\n\n"
        text += table(["", "median"], [[case, f"{ratio:.3g}"] for case, ratio in noise.items()])
    return text


def _of_scheduler(result: dict[str, Any]) -> str:
    """Those of ``forkjoin bench scheduler``: growth with the threads, the cost of plain requests."""
    ours, stock = result["costs"][PLAIN], result["costs"][STOCK]
    over_stock = {f"{width} requests": ours[width] / stock[width] for width in ours}
    slopes = result.get("slopes", {})
    growth = {kind: n for kind, n in slopes.items() if kind in (ONE_FAMILY, FAMILIES)}
    stock_growth = slopes.get(STOCK, 1.0)
    above = {kind: n - stock_growth for kind, n in growth.items()}
    command = "`forkjoin bench scheduler`"
    return _tables(
        "scheduler",
        [
            ("scheduler time a step ~ threads^n, 128 to 1,024", Bound("≤", MAX_EXPONENT), growth, command),
            ("the same, less vLLM's own n", Bound("≤", MAX_EXPONENT - 1), above, command),
            ("scheduler time a step, plain, ours / vLLM's", Bound("≤", 1.02), over_stock, command),
        ],
    )


def _of_goodput(loads: Sequence[dict[str, Any]]) -> str:
    """Those of ``forkjoin bench simulate goodput``: ``slack`` against the best of the others, by load."""
    shares: dict[str, dict[str, float]] = {}
    late: dict[str, float] = {}
    for of_load in loads:
        name, runs = of_load["load"], of_load["runs"]
        share = statistics.fmean(r["num_good"] / r["num_requests"] for r in runs)
        shares.setdefault(name, {})[of_load["threads"]] = share
        if of_load["threads"] == "slack":
            p95_ms = 1e3 * statistics.fmean(r["plain_token_s"]["p95"] for r in runs)
            late[name] = p95_ms / of_load["slo_itl_ms"]
    over_best = {
        name: own / max(others.values())
        for name, others in shares.items()
        if (own := others.pop("slack", None)) is not None and any(others.values())
    }
    command = "`forkjoin bench simulate goodput --json FILE`"
    return _tables(
        "goodput",
        [
            ("requests in time, slack / the best other policy", Bound("≥", 1), over_best, command),
            ("plain requests, p95 of a token's time / the SLO, slack", Bound("≤", 1), late, command),
        ],
    )


def _tables(title: str, judged: Sequence[tuple[str, Bound, dict[str, float], str]]) -> str:
    """A row a target, of its worst case; after them every case."""
    rows, cases = [], []
    for name, bound, measured, command in judged:
        if not measured:
            rows.append([name, bound, "–", "not measured", command])
            continue
        worst, num_met = bound.worst(measured), sum(map(bound.holds, measured.values()))
        verdict = (
            "met" if num_met == len(measured) else f"**not met** ({num_met} of {len(measured)} cases are)"
        )
        rows.append([name, bound, f"{measured[worst]:.4g} ({worst})", verdict, command])
        cases += [
            [name, case, f"{value:.4g}", "met" if bound.holds(value) else "**not met**"]
            for case, value in measured.items()
        ]
    return "\n\n".join(
        [
            f"## {title}",
            table(["target", "limit", "worst case (median)", "", "command"], rows),
            table(["target", "case", "median", ""], cases),
        ]
    )
