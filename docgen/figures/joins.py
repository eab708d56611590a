"""``joins``: three kinds of join, over decoding steps, with the tokens that each computes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from docgen.figures.recorded import JOIN, PARENT, Recorded, Script
from docgen.figures.scripts import REPREFILL, REWRITE, STITCH
from forkjoin.terminal.drawing import Theme, bare, figure

#: What the docs call each join, and whose it is.
KINDS = {
    "re-prefill (ThreadWeaver)": REPREFILL,
    "stitch (Multiverse)": STITCH,
    "rewrite (APR)": REWRITE,
}
#: Steps that are shown before the fork and after the join.
_MARGIN = 14


@dataclass(frozen=True)
class Work:
    """The tokens that a branch, or the join, computes in a step. The threads' first step is step 0."""

    step: int
    num_tokens: int


@dataclass(frozen=True)
class Run:
    """One request: the work of its branches, by id, and of its join, which ends in the step ``joined``."""

    work: dict[str, list[Work]]
    joined: int

    @property
    def threads(self) -> list[str]:
        """The ids of the threads."""
        return sorted(set(self.work) - {PARENT, JOIN})

    @property
    def num_computed_by_join(self) -> int:
        """Tokens that the join computed, during the threads and after them."""
        return sum(w.num_tokens for w in self.work.get(JOIN, []))


def record(script: Script) -> Run:
    """Run ``script`` to its end."""
    run = Recorded(script)
    run.finish()
    first = next(i for i, step in enumerate(run.steps) if run.thread(0) in step)
    work: dict[str, list[Work]] = {}
    for i, step in enumerate(run.steps[first - _MARGIN :], -_MARGIN):
        for name, num in step.items():
            work.setdefault(name, []).append(Work(i, num))
    return Run(work, max(w.step for w in work[JOIN]))


def draw(runs: dict[str, Run], path: Path, theme: Theme) -> None:
    """One panel a kind."""
    end = max(run.joined for run in runs.values()) + _MARGIN
    with figure(path, theme, 9.0, 1.7 * len(runs) + 0.3) as drawn:
        panels = drawn.subplots(len(runs), sharex=True)
        for axes, (kind, run) in zip(panels, runs.items(), strict=True):
            bare(axes, theme)
            title = f"{kind}: the join computes {run.num_computed_by_join} tokens"
            axes.set_title(title, color=theme.ink, fontsize=10, loc="left")
            _panel(axes, run, theme)
            axes.set_xlim(-_MARGIN, end)
        panels[-1].set_xlabel("decoding steps since the fork", color=theme.faint)


def _panel(axes: Any, run: Run, theme: Theme) -> None:
    names = ["answer", *(f"thread {i + 1}" for i in range(len(run.threads)))]
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.7)
    colours = [theme.answer, *theme.threads]
    for row, (branch, label) in enumerate(zip([PARENT, *run.threads], axes.get_yticklabels(), strict=True)):
        label.set_color(colours[row])
        _lane(axes, row, run.work[branch], colours[row])
    # Its thread waits while it is prefilled, so it stands in the answer's lane.
    _lane(axes, 0, run.work[JOIN], theme.threads[-1])
    for row, thread in enumerate(run.threads, 1):
        last = run.work[thread][-1].step
        for step, to in ((-0.5, -0.5), (last + 0.5, run.joined - 0.5)):
            line = {"color": colours[row], "linewidth": 1, "alpha": 0.6, "zorder": 1}
            axes.plot([step, to, to], [row, row, 0], **line)


def _lane(axes: Any, row: int, work: list[Work], colour: str) -> None:
    """A thin bar for steps of one token; for several at once a tall one, with their number."""
    decoded = _spans(w.step for w in work if w.num_tokens == 1)
    axes.broken_barh(decoded, (row - 0.12, 0.24), color=colour, linewidth=0, zorder=2)
    prefilled = [w for w in work if w.num_tokens > 1]
    axes.broken_barh(
        [(w.step - 0.5, 1) for w in prefilled], (row - 0.36, 0.72), color=colour, linewidth=0, zorder=3
    )
    for w in prefilled:
        axes.text(
            w.step + 0.9, row - 0.14, str(w.num_tokens), color=colour, fontsize=8, va="bottom", zorder=4
        )


def _spans(steps: Iterable[int]) -> list[tuple[float, int]]:
    """Where each row of neighbouring steps begins, and how many there are."""
    spans: list[tuple[float, int]] = []
    for step in steps:
        if spans and spans[-1][0] + spans[-1][1] == step - 0.5:
            spans[-1] = spans[-1][0], spans[-1][1] + 1
        else:
            spans.append((step - 0.5, 1))
    return spans
