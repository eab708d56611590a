"""The result of a run as JSON, and as Markdown tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from forkjoin_bench.comparison.measures import SLO_FACTORS, Run, goodput, rows_of
from forkjoin_bench.comparison.steps import CAUSES
from forkjoin_bench.systems.names import CLIENT_HTTP
from forkjoin_bench.tables import cell, table
from forkjoin_scheduler.errors import UsageError

#: The trace whose answers goodput is of: to be good, one may take some times what an idle client's takes.
LOADED = "families"
#: Column, number, digits; a column that no row of a scenario has is left out.
COLUMNS = (
    ("answer s", "answer_s", 3),
    ("client-http / this", "speedup", 2),
    ("wall s", "wall_s", 2),
    ("requests/s", "requests_per_s", 2),
    ("tokens/s", "tokens_per_s", 0),
    ("first token s", "first_token_s", 3),
    ("gap p50 ms", "gap_p50_ms", 1),
    ("gap p99 ms", "gap_p99_ms", 1),
    ("in time", "in_time", 2),
    ("good/s", "good_per_s", 3),
    ("plain p95 ms", "plain_p95_ms", 1),
    ("families s", "family_s", 1),
    ("fork steps", "fork_steps", 0),
    ("fork ms", "fork_ms", 1),
    ("join ms", "join_ms", 1),
    ("steps", "steps", 0),
    ("answer / its steps", "answer_over_steps", 2),
    ("step ms", "step_ms", 1),
    ("scheduler ms", "scheduler_ms", 2),
    ("server CPU ms / token", "cpu_ms", 3),
    ("of it HTTP", "front_cpu_ms", 3),
    ("peak blocks", "peak_blocks", 0),
    ("/ ideal", "peak_over_ideal", 2),
)


def result_of(facts: dict[str, Any], runs: Sequence[Run]) -> dict[str, Any]:
    """What is written: ``facts`` of the run, the rows of the tables, and every run."""
    return {**facts, "rows": rows_of(runs), "runs": [asdict(run) for run in runs]}


def write(result: dict[str, Any], path: Path) -> None:
    """Write ``result`` as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


def read_runs(path: Path) -> tuple[dict[str, Any], list[Run]]:
    """A result and its runs, as ``write`` wrote them; no runs where it has other numbers.

    Raises UsageError for a file that is none, or whose runs are another command's.
    """
    try:
        result = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: expected a result of `forkjoin bench`: {error}") from error
    if not isinstance(result, dict):
        raise UsageError(f"{path}: expected a result of `forkjoin bench`, got a {type(result).__name__}")
    try:
        fields = [{**run, "families": tuple(run["families"])} for run in result.get("runs", ())]
        return result, [Run(**run) for run in fields]
    except (KeyError, TypeError) as error:
        raise UsageError(
            f"{path}: expected what `forkjoin bench run` has written, got the runs of another command"
        ) from error


def markdown(result: dict[str, Any], runs: Sequence[Run]) -> str:
    """The whole report. Raises UsageError where ``result`` is not of ``forkjoin bench run``."""
    if "rows" not in result or "model" not in result:
        raise UsageError("report: expected results of `forkjoin bench run`, got one of another command")
    parts = [_heading(result)]
    for scenario in dict.fromkeys(run.scenario for run in runs):
        rows = [row for row in result["rows"] if row["scenario"] == scenario]
        parts += [f"## {scenario}", _numbers(rows), "Tokens prefilled, by cause:", _prefill(rows)]
        if curve := _goodput([run for run in runs if run.scenario == scenario], runs):
            parts += ["Goodput, answers a second within so many times an idle `client-http`'s answer:", curve]
    if wrong := [e for row in result["rows"] for e in row["errors"]]:
        parts += [f"## {len(wrong)} answers were wrong", "\n".join(f"- {e}" for e in wrong[:20])]
    return "\n\n".join(parts) + "\n"


def _heading(result: dict[str, Any]) -> str:
    host = result["host"]
    return (
        f"# {result['model']}: {result['command']}\n\n"
        f"{host['cpu']}, {host['usable_cpus']} CPUs, load before {host['load_average']}; "
        f"{', '.join(f'{k} {v}' for k, v in host['versions'].items())}; commit {host['commit']}. "
        f"Median (least-greatest) of {result['rounds']} rounds, the systems in turn, "
        f"engines started {result.get('starts', 1)} times, two at a time{_starts(result)}."
    )


def _starts(result: dict[str, Any]) -> str:
    took = [f"{name} {median(s):.0f} s" for name, s in result.get("start_s", {}).items()]
    return f" ({', '.join(took)})" if took else ""


def _numbers(rows: Sequence[dict[str, Any]]) -> str:
    shown = [c for c in COLUMNS if any(c[1] in row["values"] for row in rows)]
    lines = [
        [row["trace"], row["load"], row["system"], *(cell(row["values"].get(n), d) for _, n, d in shown)]
        for row in rows
    ]
    return table(["trace", "load", "system", *(title for title, _, _ in shown)], lines)


def _prefill(rows: Sequence[dict[str, Any]]) -> str:
    names = ["prefilled", *(f"prefilled_{cause}" for cause in CAUSES)]
    lines = [
        [row["trace"], row["load"], row["system"], *(cell(row["values"].get(n), 0) for n in names)]
        for row in rows
    ]
    return table(["trace", "load", "system", "all", *CAUSES], lines)


def _goodput(own: Sequence[Run], runs: Sequence[Run]) -> str | None:
    base = idle_answer_s(runs)
    loaded = [run for run in own if len(run.families) > 1 and run.trace == LOADED]
    if base is None or not loaded:
        return None
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in loaded:
        groups.setdefault((run.load, run.system), []).append(run)
    lines = [
        [*group, *(f"{median(goodput(r, f * base) for r in members):.2f}" for f in SLO_FACTORS)]
        for group, members in groups.items()
    ]
    return table(["load", "system", *(f"{f:g}× = {f * base:.2f} s" for f in SLO_FACTORS)], lines)


def idle_answer_s(runs: Sequence[Run]) -> float | None:
    """What the client loop over HTTP takes for one of ``families``, alone; None if that was not run."""
    alone = [
        r.values["answer_s"]
        for r in runs
        if (r.trace, r.load, r.system) == (LOADED, "c1", CLIENT_HTTP) and "answer_s" in r.values
    ]
    return median(alone) if alone else None
