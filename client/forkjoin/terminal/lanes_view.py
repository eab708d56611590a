"""Lanes as a table: a name, a bar over time, and what is to be said of each."""

from __future__ import annotations

import math

from rich.table import Table
from rich.text import Text

from forkjoin.lanes import Lane, Lanes
from forkjoin.terminal.printable import one_line

_COLOURS = ("cyan", "green", "magenta", "yellow", "blue", "red")
#: What the columns beside the bar take, at most.
_NAME, _NUMBERS = 28, 26


def colour(lane: Lane) -> str:
    """Of a thread, the same for as long as it is shown."""
    return "bold" if lane.index < 0 else _COLOURS[lane.index % len(_COLOURS)]


def table(lanes: Lanes, now: float, *, width: int, most: int | None = None, unit: str = "s") -> Table:
    """The lanes up to ``now``; of more than ``most``, the first ones."""
    end = max(now, 1e-9)
    grid = Table.grid(padding=(0, 1))
    bar_width = max(10, width - _NAME - _NUMBERS - 3)
    grid.add_column(width=_NAME, no_wrap=True, overflow="ellipsis")
    grid.add_column(width=bar_width, no_wrap=True)
    grid.add_column(width=_NUMBERS, no_wrap=True, overflow="ellipsis")
    shown = list(lanes.in_order())
    for lane in shown[:most]:
        name = "  " * lane.depth + one_line(lane.title or f"thread {lane.index}")
        style = colour(lane)
        grid.add_row(
            Text(name, style), Text(bar(lane, end, bar_width), style), Text(numbers(lane, now, unit))
        )
    left_out = len(shown) - len(shown[:most])
    if left_out:
        grid.add_row(Text(f"… {left_out} more", "dim"), "", "")
    scale = f"{end:.2f} s" if unit == "s" else f"{end:.0f} {unit}"
    grid.add_row("", Text(f"0{scale:>{bar_width - 1}}", "dim"), "")
    return grid


def bar(lane: Lane, end: float, width: int) -> str:
    """The lane from 0 to ``end``: thick where it writes, thin where its threads do, hatched where it waits.

    >>> bar(Lane(index=0, title="", depth=1, start=2, end=6), 8, 8)
    '  ┣━━┫  '
    >>> waited = {"start": 0, "end": 4, "waits_for": "turn"}
    >>> bar(Lane(index=0, title="", depth=1, start=0, waits=[waited]), 8, 8)
    '┣░░░━━━━'
    """
    cells = [" "] * width
    own = _cells(lane.start, lane.end, end, width)
    for at in own:
        cells[at] = "━"
    signs = [(split, "┄") for split in lane.splits] + [(wait, "░") for wait in lane.waits]
    for pause, sign in signs:
        for at in _cells(pause.start, pause.end, end, width):
            cells[at] = sign
    if lane.index >= 0:
        cells[own[0]] = "┣"
        if lane.end is not None:
            cells[own[-1]] = "┫"
    return "".join(cells)


def _cells(start: float, until: float | None, end: float, width: int) -> range:
    """The cells, one at least, of what lasts from ``start`` to ``until``; all of them last until ``end``."""
    first = min(width - 1, int(start / end * width))
    last = math.ceil((end if until is None else until) / end * width)
    return range(first, min(width, max(first + 1, last)))


def numbers(lane: Lane, now: float, unit: str) -> str:
    """What a lane says of itself: tokens, their speed, what it waits for, and how it ended."""
    parts = [f"{lane.num_tokens} tokens"] if lane.num_tokens else []
    took = (now if lane.end is None else lane.end) - lane.start
    if unit == "s" and lane.num_tokens and lane.index >= 0 and took > 0:
        parts.append(f"{lane.num_tokens / took:.0f}/s")
    if lane.waits_for is not None:
        parts.append(one_line(f"waits: {lane.waits_for}"))
    if lane.finish_reason not in (None, "stop"):
        parts.append(one_line(str(lane.finish_reason)))
    return " ".join(parts)
