"""``request-path``: the twelve steps of a request, drawn from the lines of ARCHITECTURE.md."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from forkjoin.terminal.drawing import Theme, figure

ARCHITECTURE = Path(__file__).parents[2] / "ARCHITECTURE.md"
#: The steps that the engine core does; the API process does the others.
IN_ENGINE = range(4, 11)
#: How many files of a step the figure shows.
_SHOWN = 2


@dataclass(frozen=True)
class Step:
    """A line of ARCHITECTURE.md: its number, its name, and the files (or rooms) that it names."""

    number: int
    name: str
    files: tuple[str, ...]

    @property
    def shown(self) -> tuple[str, ...]:
        """The files that the figure has room for, without their rooms."""
        return tuple(re.sub(r".*/(?=\w)", "", file) for file in self.files[:_SHOWN])


def steps() -> list[Step]:
    """All of them, in order."""
    section = ARCHITECTURE.read_text().partition("## The path of a request")[2].partition("\n## ")[0]
    lines = re.findall(r"^(\d+)\. \*\*(\w+)\.\*\* (.*)$", section, flags=re.M)
    return [
        Step(int(number), name, tuple(dict.fromkeys(re.findall(r"`([\w/]+\.py|\w+/)`", text))))
        for number, name, text in lines
    ]


def draw(path: Path, theme: Theme) -> None:
    """Two lanes: down from the API process to the engine core, and up again."""
    told = steps()
    columns = {step.number: float(n) for n, step in enumerate(s for s in told if s.number in IN_ENGINE)}
    down = [step for step in told if step.number < IN_ENGINE.start]
    up = [step for step in told if step.number >= IN_ENGINE.stop]
    columns |= {step.number: float(n) for n, step in enumerate(down)}
    columns |= {step.number: len(IN_ENGINE) - len(up) + n for n, step in enumerate(up)}
    with figure(path, theme, 11.0, 2.4) as drawn:
        axes = drawn.subplots()
        axes.set_facecolor(theme.ground)
        axes.set_axis_off()
        axes.set_xlim(-0.6, len(IN_ENGINE) - 0.4)
        axes.set_ylim(-0.45, 1.7)
        for row, name in ((1, "API process"), (0, "engine core")):
            axes.text(-0.5, row + 0.52, name, color=theme.faint, fontsize=9, ha="left", va="center")
        places = [(columns[s.number], 0 if s.number in IN_ENGINE else 1) for s in told]
        for step, (x, y) in zip(told, places, strict=True):
            _box(axes, x, y, step, theme.threads[0] if y else theme.threads[1], theme)
        for start, end in pairwise(places):
            _arrow(axes, start, end, theme)


def _box(axes: Any, x: float, y: float, step: Step, colour: str, theme: Theme) -> None:
    from matplotlib.patches import FancyBboxPatch

    style = "round,pad=0,rounding_size=0.06"
    axes.add_patch(
        FancyBboxPatch((x - 0.43, y - 0.36), 0.86, 0.72, boxstyle=style, facecolor="none", edgecolor=colour)
    )
    axes.text(x, y + 0.18, f"{step.number} {step.name}", color=theme.ink, ha="center", va="center")
    for n, file in enumerate(step.shown):
        axes.text(x, y - 0.06 - 0.2 * n, file, color=theme.faint, ha="center", va="center", fontsize=7)


def _arrow(axes: Any, start: tuple[float, int], end: tuple[float, int], theme: Theme) -> None:
    same = start[1] == end[1]
    begin = (start[0] + 0.43, start[1]) if same else (start[0], start[1] + (0.36 if end[1] else -0.36))
    stop = (end[0] - 0.43, end[1]) if same else (end[0], end[1] + (-0.36 if end[1] else 0.36))
    look = {"arrowstyle": "->", "color": theme.faint, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", xy=stop, xytext=begin, arrowprops=look)
