"""Plots of a result, as PNG files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

from forkjoin_bench.comparison.measures import SLO_FACTORS, Run, goodput, rows_of
from forkjoin_bench.comparison.report import idle_answer_s
from forkjoin_bench.comparison.steps import CAUSES

WIDTH, HEIGHT = 9, 4.5


def plot_all(runs: Sequence[Run], stem: Path) -> list[Path]:
    """Every plot that there are runs for, at ``stem-….png``."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawn = []
    drawings: dict[str, Callable[[Any, Sequence[Run]], bool]] = {
        "answer": _answers,
        "prefill": _prefill,
        "load": _load,
        "goodput": _goodput,
    }
    for name, draw in drawings.items():
        figure, axes = pyplot.subplots(figsize=(WIDTH, HEIGHT), layout="constrained")
        if draw(axes, runs):
            path = stem.with_name(f"{stem.name}-{name}.png")
            figure.savefig(path, dpi=120)
            drawn.append(path)
        pyplot.close(figure)
    return drawn


def _answers(axes: Any, runs: Sequence[Run]) -> bool:
    """Time to answer of an idle stream, by trace; whiskers from least to greatest."""
    rows = [r for r in rows_of(runs) if r["scenario"] == "idle" and "answer_s" in r["values"]]
    systems, traces = _each(rows, "system"), _each(rows, "trace")
    for i, system in enumerate(systems):
        own = {r["trace"]: r["values"]["answer_s"] for r in rows if r["system"] == system}
        at = [x + (i - len(systems) / 2) * 0.8 / len(systems) for x, t in enumerate(traces) if t in own]
        spreads = [own[t] for t in traces if t in own]
        middles = [s["median"] for s in spreads]
        ranges = [
            [s["median"] - s["least"] for s in spreads],
            [s["greatest"] - s["median"] for s in spreads],
        ]
        axes.bar(at, middles, 0.8 / len(systems), yerr=ranges, label=system, capsize=2)
    axes.set_xticks(range(len(traces)), traces, rotation=15)
    axes.set(ylabel="time to answer, s", title="One request at a time")
    _legend(axes)
    return bool(rows)


def _prefill(axes: Any, runs: Sequence[Run]) -> bool:
    """Tokens prefilled by cause, one bar a trace and system."""
    rows = [r for r in rows_of(runs) if r["scenario"] in ("idle", "pressure")]
    names = [f"{r['trace']}, {r['load']}\n{r['system']}" for r in rows]
    left = [0.0] * len(rows)
    for cause in CAUSES:
        widths = [r["values"][f"prefilled_{cause}"]["median"] for r in rows]
        axes.barh(names, widths, left=left, label=cause)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.figure.set_size_inches(WIDTH, max(HEIGHT, 0.3 * len(rows)))
    axes.tick_params(axis="y", labelsize=6)
    axes.invert_yaxis()
    axes.set(xlabel="tokens prefilled", title="Why tokens are prefilled")
    _legend(axes)
    return bool(rows)


def _load(axes: Any, runs: Sequence[Run]) -> bool:
    """Mean time to answer against requests a second, from load to load."""
    rows = [r for r in rows_of(runs) if r["scenario"] == "load" and "answer_s" in r["values"]]
    for system in _each(rows, "system"):
        own = [r["values"] for r in rows if r["system"] == system]
        x = [v["requests_per_s"]["median"] for v in own]
        axes.plot(x, [v["answer_s"]["median"] for v in own], marker="o", label=system)
    axes.set(xlabel="requests/s", ylabel="mean time to answer, s", title="Families, more and more at a time")
    _legend(axes)
    return bool(rows)


def _goodput(axes: Any, runs: Sequence[Run]) -> bool:
    """Goodput against the latency that is good, at 16 families at a time."""
    base = idle_answer_s(runs)
    loaded = [r for r in runs if (r.scenario, r.load) == ("load", "c16")]
    for system in dict.fromkeys(r.system for r in loaded):
        own = [r for r in loaded if r.system == system]
        if base is not None:
            middles = [sorted(goodput(r, f * base) for r in own)[len(own) // 2] for f in SLO_FACTORS]
            axes.plot([f * base for f in SLO_FACTORS], middles, marker="o", label=system)
    axes.set(
        xlabel="an answer within so many s is good", ylabel="good answers/s", title="16 families at a time"
    )
    _legend(axes)
    return bool(loaded) and base is not None


def _each(rows: Sequence[dict[str, Any]], key: str) -> list[str]:
    return list(dict.fromkeys(row[key] for row in rows))


def _legend(axes: Any) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)
