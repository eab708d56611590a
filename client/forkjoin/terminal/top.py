"""``forkjoin top``: what a server does right now, again and again: its metrics, and its families."""

from __future__ import annotations

import sys
import time
from collections import deque

from pydantic import ValidationError
from rich.console import Console, ConsoleRenderable, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from forkjoin.client import Client
from forkjoin.errors import ForkJoinError
from forkjoin.families import PATH, Families
from forkjoin.load import Load, Look, load
from forkjoin.parsing import fault, parsed
from forkjoin.terminal import families_table, kept_table
from forkjoin.terminal.printable import one_line, printable

_BARS = " ▁▂▃▄▅▆▇█"
#: The lines of a page that show neither a family nor a kept answer.
_OTHER_LINES = 16
#: The most kept answers, and the lines above them.
_KEPT_ANSWERS, _KEPT_HEAD = 5, 3
#: How many looks the course of tokens a second goes back.
_COURSE = 60


def run(client: Client, interval_s: float) -> None:
    """Show the load every ``interval_s`` seconds until Ctrl-C. Into a pipe, one line, and end."""
    before = _look(client)
    if not sys.stdout.isatty():
        time.sleep(interval_s)
        print(line(load(before, _look(client))))
        return
    course: deque[float] = deque(maxlen=_COURSE)
    console = Console()
    with Live(console=console, auto_refresh=False, screen=True) as live:
        while True:
            time.sleep(interval_s)
            try:
                now = _look(client)
            except ForkJoinError as error:  # it may come back
                live.update(Text(printable(str(error)), "red"), refresh=True)
                continue
            seen = load(before, now)
            course.append(seen.tokens_rate or 0.0)
            families = _families(client, console.height - _OTHER_LINES)
            page = Group(*_load(client.address, now, seen, list(course)), "", families)
            live.update(page, refresh=True)
            before = now


def _look(client: Client) -> Look:
    return Look.of(client.get("/metrics").text, time.monotonic())


def _families(client: Client, num_lines: int) -> ConsoleRenderable:
    """The families and kept answers that fit into so many lines, one family at least.

    Or why they can't be shown: the load can be without them.
    """
    try:
        seen = Families.model_validate(parsed(client.get(PATH).content))
    except ForkJoinError as error:
        return Text(one_line(f"families: {error}"), "dim")
    except ValidationError as error:
        return Text(
            one_line(f"families: expected those of a server that forks, got other JSON: {fault(error)}"),
            "dim",
        )
    except ValueError:
        return Text("families: expected JSON, got something else", "dim")
    kept = kept_table.table(seen, _KEPT_ANSWERS)
    if kept is None:
        return families_table.table(seen, max(num_lines, 1))
    families = families_table.table(seen, max(num_lines - kept.row_count - _KEPT_HEAD, 1))
    return Group(families, "", kept)


def line(seen: Load) -> str:
    """The load in a line of plain text."""
    parts = [
        f"running {_number(seen.running)}",
        f"threads {_number(seen.threads)}",
        f"waiting {_number(seen.requests_waiting)} requests {_number(seen.threads_waiting)} threads",
        f"KV {_percent(seen.kv_used)}",
        f"{_number(seen.tokens_rate)} tokens/s",
        f"{_number(seen.forks_rate, 1)} forks/s",
        f"{_number(seen.joins_rate, 1)} joins/s",
    ]
    return " · ".join(parts)


def _load(address: str, now: Look, seen: Load, course: list[float]) -> list[ConsoleRenderable | str]:
    grid = Table.grid(padding=(0, 2))
    for _ in range(4):
        grid.add_column(no_wrap=True)
    rows = [
        ("sequences decoding", _number(seen.running), "tokens/s", _number(seen.tokens_rate)),
        ("threads", _number(seen.threads), "prompt tokens/s", _number(seen.prompt_rate)),
        ("requests waiting", _number(seen.requests_waiting), "forks/s", _number(seen.forks_rate, 1)),
        ("threads waiting", _number(seen.threads_waiting), "joins/s", _number(seen.joins_rate, 1)),
        ("KV blocks used", _percent(seen.kv_used), "fork to first token", _time(seen.fork_s)),
        ("answers ended/s", _number(seen.ended_rate, 1), "end to next token", _time(seen.join_s)),
        ("refused/s", _number(seen.refused_rate, 1), "tokens a step", _number(seen.tokens_a_step, 2)),
        ("preempted/s", _number(seen.preempted_rate, 1), "internal errors", _number(seen.errors)),
    ]
    for left, value, right, other in rows:
        grid.add_row(Text(left, "dim"), Text(value, "bold"), Text(right, "dim"), Text(other, "bold"))
    models = ", ".join(map(printable, now.models))
    return [
        Text(f"{address}  {models}", "bold"),
        "",
        grid,
        "",
        Text(bars(course), "cyan"),
        Text(f"tokens a second, up to {_number(max(course))}; Ctrl-C ends", "dim"),
    ]


def bars(course: list[float]) -> str:
    """A bar for each number, as high as it is beside the greatest.

    >>> bars([0, 1, 2, 4])
    ' ▂▄█'
    """
    top = max(course) or 1.0
    return "".join(_BARS[round(value / top * (len(_BARS) - 1))] for value in course)


def _number(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


def _time(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds * 1000:.0f} ms"
