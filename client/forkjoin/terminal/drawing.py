"""Lanes as a figure, by matplotlib: SVG or PNG by the file's name, on light or on dark ground."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forkjoin.errors import ForkJoinError
from forkjoin.lanes import Lane, Lanes, Pause
from forkjoin.terminal.printable import one_line

_WIDTH, _ROW, _MARGIN = 9.0, 0.34, 0.7
_MAX_TITLE = 34


@dataclass(frozen=True)
class Theme:
    """The colours of a figure."""

    ground: str
    ink: str
    faint: str
    answer: str
    threads: tuple[str, ...]


LIGHT = Theme(
    "#ffffff", "#1f2328", "#8b949e", "#57606a", ("#0969da", "#1a7f37", "#8250df", "#bc4c00", "#bf3989")
)
DARK = Theme(
    "#0d1117", "#e6edf3", "#7d8590", "#9198a1", ("#58a6ff", "#3fb950", "#bc8cff", "#f0883e", "#f778ba")
)


@contextmanager
def figure(path: Path, theme: Theme, width: float, height: float) -> Iterator[Any]:
    """A figure of ``width`` by ``height`` inches, written to ``path`` at the end.

    Raises ForkJoinError if it can't be.
    """
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise ForkJoinError("a figure needs matplotlib: pip install matplotlib") from error
    mpl.use("Agg")
    from matplotlib import pyplot

    # The same figure is the same file: no time and no random ids in it. Text stays text, "$" too.
    settings: Any = {
        "svg.hashsalt": "forkjoin",
        "svg.fonttype": "none",
        "text.parse_math": False,
        "font.size": 9,
    }
    with mpl.rc_context(settings):
        drawn = pyplot.figure(figsize=(width, height), layout="constrained", facecolor=theme.ground)
        try:
            yield drawn
            drawn.savefig(path, dpi=160, metadata={"Date": None} if path.suffix == ".svg" else None)
        except OSError as error:
            raise ForkJoinError(f"could not write {path}: {error.strerror}: name another file") from error
        finally:
            pyplot.close(drawn)


def bare(axes: Any, theme: Theme) -> None:
    """Leave ``axes`` only their labels, and faint vertical lines."""
    axes.set_facecolor(theme.ground)
    axes.tick_params(axis="x", colors=theme.faint)
    axes.tick_params(axis="y", length=0, colors=theme.faint)
    axes.grid(axis="x", color=theme.faint, alpha=0.2, linewidth=0.6)
    for side in axes.spines.values():
        side.set_visible(False)


def draw(lanes: Lanes, unit: str, path: Path, theme: Theme, title: str = "") -> None:
    """Draw ``lanes`` into the file ``path``. Raises ForkJoinError if that can't be."""
    height = _MARGIN + _ROW * len(lanes) + (0.3 if title else 0)
    with figure(path, theme, _WIDTH, height) as drawn:
        axes = drawn.subplots()
        _lanes(axes, lanes, theme)
        _frame(axes, lanes, unit, theme, title)


def _lanes(axes: Any, lanes: Lanes, theme: Theme) -> None:
    rows = {lane.index: row for row, lane in enumerate(lanes.in_order())}
    for lane in lanes.in_order():
        colour, row = _colour(lane, theme), rows[lane.index]
        for start, end in _written(lane):
            axes.plot([start, end], [row, row], color=colour, linewidth=5, solid_capstyle="butt", zorder=3)
        for wait in lane.waits:
            end = wait.end if wait.end is not None else _end(lane)
            axes.plot([wait.start, end], [row, row], color=colour, linewidth=5, alpha=0.25, zorder=3)
        for split in lane.splits:
            end = split.end if split.end is not None else _end(lane)
            axes.plot(
                [split.start, end], [row, row], color=colour, linewidth=1, linestyle=(0, (2, 3)), zorder=2
            )
            for index in split.threads:
                thread, below = lanes[index], rows[index]
                line = {"color": _colour(thread, theme), "linewidth": 1, "alpha": 0.7, "zorder": 1}
                axes.plot([split.start, split.start], [row, below], **line)
                axes.plot([_end(thread), end, end], [below, below, row], **line)
        said = f"{lane.num_tokens} tokens"
        if lane.finish_reason not in (None, "stop"):
            said += f", {one_line(str(lane.finish_reason))}"
        axes.annotate(
            said, (1, row), xycoords=("axes fraction", "data"), xytext=(6, 0), textcoords="offset points",
            va="center", color=theme.faint, fontsize=8,
        )  # fmt: skip


def _written(lane: Lane) -> list[tuple[float, float]]:
    """From when to when it wrote: all of its time but its splits, and its waits."""
    spans, at = [], lane.start
    pauses: list[Pause] = [*lane.splits, *lane.waits]
    for pause in sorted(pauses, key=lambda pause: pause.start):
        spans.append((at, pause.start))
        at = pause.end if pause.end is not None else _end(lane)
    return [*spans, (at, _end(lane))]


def _frame(axes: Any, lanes: Lanes, unit: str, theme: Theme, title: str) -> None:
    bare(axes, theme)
    titles = [(_title(lane), lane) for lane in lanes.in_order()]
    axes.set_yticks(range(len(titles)), [text for text, _ in titles])
    for label, (_, lane) in zip(axes.get_yticklabels(), titles, strict=True):
        label.set_color(_colour(lane, theme))
    axes.set_ylim(len(titles) - 0.4, -0.6)
    axes.set_xlim(0, _end(lanes.answer))
    axes.set_xlabel("seconds" if unit == "s" else "decoding steps", color=theme.faint)
    if title:
        axes.set_title(one_line(title), color=theme.ink, fontsize=10, loc="left")


def _title(lane: Lane) -> str:
    text = one_line(lane.title or f"thread {lane.index}")
    return text if len(text) <= _MAX_TITLE else text[: _MAX_TITLE - 1] + "…"


def _colour(lane: Lane, theme: Theme) -> str:
    return theme.answer if lane.index < 0 else theme.threads[lane.index % len(theme.threads)]


def _end(lane: Lane) -> float:
    return lane.end if lane.end is not None else lane.start
