"""Policies compared in a picture. matplotlib is imported when one is drawn, and needed for nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from forkjoin_bench.simulator.measures import Result

Curves = Mapping[str, Mapping[float, Result]]


def draw_curves(curves: Curves, path: Path, x_label: str) -> None:
    """``curves``: by policy, results by what is varied. Latency, throughput and recomputation are drawn."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SystemExit("--plot: expected matplotlib, found none: pip install matplotlib") from error
    panels: dict[str, Callable[[Result], float]] = {
        "mean latency (s)": lambda r: r.latency_s.mean,
        "tokens/s": lambda r: r.tokens_per_s,
        "tokens computed again (thousands)": lambda r: r.prefilled["recomputed"] / 1000,
    }
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    for axes, (title, value) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for name, results in curves.items():
            axes.plot(list(results), [value(r) for r in results.values()], marker=".", label=name)
        axes.set(title=title, xlabel=x_label, ylim=(0, None))
        axes.grid(alpha=0.3)
    figure.axes[0].legend()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
