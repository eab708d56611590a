"""The families of a server as a table."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from forkjoin.families import Families, Family, waits_for
from forkjoin.terminal.ages import age
from forkjoin.terminal.printable import one_line

_COLOURS = {"waiting": "yellow", "forked": "cyan", "joining": "magenta"}


def table(seen: Families, most: int) -> Table:
    """The first ``most`` families; a line says how many more there are."""
    grid = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    grid.add_column("request", no_wrap=True, overflow="ellipsis")
    grid.add_column("age", justify="right", no_wrap=True)
    for name in ("state", "threads", "waits for"):
        grid.add_column(name, no_wrap=True)
    grid.add_column("tokens", justify="right", no_wrap=True)
    grid.add_column("KV blocks: now, most, expected", no_wrap=True)
    rows = [family for engine in seen.engines for family in engine.families]
    for family in rows[:most]:
        grid.add_row(*_cells(family))
    if left_out := sum(engine.num_families for engine in seen.engines) - len(rows[:most]):
        grid.add_row(Text(f"… {left_out} more", "dim"))
    return grid


def _cells(family: Family) -> list[Text]:
    name = "another key's" if family.request_id is None else one_line(family.request_id)
    blocks = [family.kv_blocks, family.peak_kv_blocks, family.expected_kv_blocks]
    state = one_line(family.state)
    return [
        Text(name),
        Text(age(family.age_s), "dim"),
        Text(state, _COLOURS.get(state, "green")),
        Text(_threads(family)),
        Text(one_line(waits_for(family)), "yellow"),
        Text(f"{family.total_tokens:,}"),
        Text(", ".join("–" if num is None else f"{num:,.0f}" for num in blocks)),
    ]


def _threads(family: Family) -> str:
    counts = family.threads.model_dump()
    return ", ".join(f"{num} {state}" for state, num in counts.items() if num) or "–"
