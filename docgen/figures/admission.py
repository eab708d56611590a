"""``admission``: the KV blocks of families that do not all fit, with two kinds of admission."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from docgen.figures.pressure import Run
from forkjoin.terminal.drawing import Theme, bare, figure

#: Of so many steps one is drawn.
_EVERY = 4


def draw(runs: dict[str, Run], path: Path, theme: Theme) -> None:
    """The blocks in use of each run over its steps, and what was expected of the families and came."""
    with figure(path, theme, 9.0, 5.6) as drawn:
        grid = drawn.add_gridspec(2, len(runs), height_ratios=[3, 2])
        last = max(len(run.held) for run in runs.values())
        for column, (admission, run) in enumerate(runs.items()):
            axes = drawn.add_subplot(grid[0, column])
            bare(axes, theme)
            _blocks(axes, run, theme)
            axes.set_xlim(0, last)
            num = len(run.preempted_at)
            axes.set_title(
                f"{admission}: {len(run.held)} steps, {num} preemption{'s' * (num != 1)}",
                color=theme.ink, fontsize=10, loc="left",
            )  # fmt: skip
            axes.set_xlabel("steps", color=theme.faint)
        drawn.axes[0].set_ylabel("KV blocks in use, by family", color=theme.faint)
        axes = drawn.add_subplot(grid[1, :])
        bare(axes, theme)
        _expected(axes, next(iter(runs.values())), theme)


def _blocks(axes: Any, run: Run, theme: Theme) -> None:
    """A layer for each family, those admitted first below."""
    at = range(0, len(run.held), _EVERY)
    below = [0] * len(at)
    for place, name in enumerate(run.names):
        above = [low + run.held[step].get(name, 0) for step, low in zip(at, below, strict=True)]
        lives = [i for i, (low, high) in enumerate(zip(below, above, strict=True)) if high > low]
        span = slice(lives[0], lives[-1] + 2) if lives else slice(0)
        axes.fill_between(
            at[span], below[span], above[span], step="post", alpha=0.6, edgecolor=theme.ground,
            facecolor=theme.threads[place % len(theme.threads)], linewidth=0.6,
        )  # fmt: skip
        below = above
    axes.axhline(run.num_blocks, color=theme.ink, linewidth=1, linestyle=(0, (4, 2)))
    axes.set_ylim(0, run.num_blocks * 1.15)
    marks = [run.num_blocks * 1.06] * len(run.preempted_at)
    axes.plot(run.preempted_at, marks, "x", color=theme.threads[3], markersize=5)


def _expected(axes: Any, run: Run, theme: Theme) -> None:
    """For each family a bar of the most blocks that it held, and a line at what was expected."""
    names = run.names
    peaks = [run.families[name].peak for name in names]
    axes.bar(range(len(names)), peaks, 0.6, color=theme.threads[0], alpha=0.6)
    for place, name in enumerate(names):
        expected = run.families[name].expected
        if expected is not None:
            axes.plot([place - 0.38, place + 0.38], [expected] * 2, color=theme.threads[3], linewidth=2)
    axes.grid(visible=False)
    axes.set_xticks(range(len(names)), [str(i + 1) for i in range(len(names))])
    axes.set_xlabel("families of the first run, in the order of admission", color=theme.faint)
    axes.set_ylabel("KV blocks", color=theme.faint)
    axes.set_title(
        "most blocks held (bar), and expected at admission (line)", color=theme.ink, fontsize=10, loc="left"
    )
