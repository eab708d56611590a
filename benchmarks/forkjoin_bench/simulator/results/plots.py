"""Policies compared in a picture. matplotlib is imported when one is drawn, and needed for nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from forkjoin.errors import ForkJoinError
from forkjoin.terminal.drawing import Theme, bare, figure
from forkjoin_bench.simulator.results.measures import Result
from forkjoin_scheduler.errors import UsageError

Curves = Mapping[str, Mapping[float, Result]]


def draw_curves(curves: Curves, path: Path, x_label: str, theme: Theme) -> None:
    """``curves``: by policy, results by what is varied. Latency, throughput and recomputation are drawn.

    Raises UsageError if there is no matplotlib, or the file can't be written.
    """
    panels: dict[str, Callable[[Result], float]] = {
        "mean latency (s)": lambda r: r.latency_s.mean,
        "tokens/s": lambda r: r.tokens_per_s,
        "tokens computed again (thousands)": lambda r: r.prefilled["recomputed"] / 1000,
    }
    try:
        with figure(path, theme, 12, 3.4) as drawn:
            for axes, (title, value) in zip(drawn.subplots(1, len(panels)), panels.items(), strict=True):
                _panel(
                    axes,
                    theme,
                    {name: (list(c), [value(r) for r in c.values()]) for name, c in curves.items()},
                )
                axes.set_title(title, color=theme.ink, fontsize=10)
                axes.set_xlabel(x_label, color=theme.faint)
            drawn.axes[0].legend(frameon=False, labelcolor=theme.ink)
    except ForkJoinError as error:
        raise UsageError(f"--plot: {error}") from error


def _panel(axes: Any, theme: Theme, curves: Mapping[str, tuple[list[float], list[float]]]) -> None:
    bare(axes, theme)
    axes.grid(axis="y", color=theme.faint, alpha=0.2, linewidth=0.6)
    for (name, (at, values)), colour in zip(curves.items(), theme.threads * len(curves), strict=False):
        axes.plot(at, values, marker=".", label=name, color=colour)
    axes.set_ylim(0, None)
