"""The kept answers of a server as a table."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from forkjoin.families import Families, KeptAnswer
from forkjoin.terminal.ages import age
from forkjoin.terminal.printable import one_line


def table(seen: Families, most: int) -> Table | None:
    """The first ``most`` kept answers, under what they hold together; None if none is kept."""
    kept = [engine.kept for engine in seen.engines if engine.kept is not None]
    num_answers = sum(k.num_answers for k in kept)
    if not num_answers:
        return None
    blocks, limit = sum(k.kv_blocks for k in kept), sum(k.max_kv_blocks for k in kept)
    title = f"kept answers: {num_answers:,}, which hold {blocks:,} of {limit:,} KV blocks"
    grid = Table(
        title=title, title_justify="left", title_style="", box=None, padding=(0, 2, 0, 0), header_style="dim"
    )
    grid.add_column("answer", no_wrap=True, overflow="ellipsis")
    for name in ("ends in", "tokens", "KV blocks", "continued"):
        grid.add_column(name, justify="right", no_wrap=True)
    rows = sorted((a for k in kept for a in k.answers), key=lambda answer: answer.expires_in_s)
    for answer in rows[:most]:
        grid.add_row(*_cells(answer))
    if left_out := num_answers - len(rows[:most]):
        grid.add_row(Text(f"… {left_out} more", "dim"))
    return grid


def _cells(answer: KeptAnswer) -> list[Text]:
    name = "another key's" if answer.request_id is None else one_line(answer.request_id)
    return [
        Text(name),
        Text(age(answer.expires_in_s), "dim"),
        Text(f"{answer.tokens:,}"),
        Text(f"{answer.kv_blocks:,}"),
        Text(f"{answer.num_continued:,}"),
    ]
