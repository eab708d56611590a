"""``blocks``: where the KV of a request lies when its threads run and after its join, block by block."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from docgen.figures.recorded import JOIN, PARENT, Recorded, Script, Table
from forkjoin.terminal.drawing import Theme, bare, figure

#: Tokens that the slowest thread has written when the blocks are looked at.
_WRITTEN = 14


@dataclass(frozen=True)
class Tables:
    """The block tables of a request while its threads run, and of its parent after the join."""

    block_size: int
    forked: tuple[Table, ...]
    joined: Table


def record(script: Script) -> Tables:
    """Run ``script`` to its end, and look at its blocks twice."""
    run = Recorded(script)
    last = run.thread(len(script.threads) - 1)
    run.steps_until(lambda: run.decodes(last) and run.request(last).num_output_tokens >= _WRITTEN)
    branches = [PARENT, *(run.thread(i) for i in range(len(script.threads)))]
    forked = tuple(run.table(branch) for branch in branches)
    run.steps_until(lambda: run.has_joined)
    joined = run.table(PARENT)
    run.finish()
    return Tables(run.block_size, forked, joined)


def draw(reprefill: Tables, stitch: Tables, path: Path, theme: Theme) -> None:
    """Three panels: the fork, which is the same for both, and each join."""
    panels = {
        "while the threads run: each table begins with the same blocks": reprefill.forked,
        "after a re-prefill join": (reprefill.joined,),
        "after a stitched join": (stitch.joined,),
    }
    ratios = [len(tables) + 0.3 for tables in panels.values()]
    with figure(path, theme, 9.0, 0.42 * sum(ratios) + 1.5) as drawn:
        width = max(len(table.block_ids) for tables in panels.values() for table in tables)
        rows = drawn.subplots(len(panels), gridspec_kw={"height_ratios": ratios})
        for axes, (title, tables) in zip(rows, panels.items(), strict=True):
            bare(axes, theme)
            axes.grid(visible=False)
            axes.set_title(title, color=theme.ink, fontsize=10, loc="left")
            axes.set_xticks([])
            axes.set_xlim(0, width + 0.1)
            axes.set_ylim(len(tables) - 0.4, -0.6)
            axes.set_yticks(range(len(tables)), [_named(table.branch) for table in tables])
            for row, table in enumerate(tables):
                _table(axes, row, table, reprefill.block_size, theme)
        _legend(drawn, len(reprefill.forked) - 1, theme)


def _named(branch: str) -> str:
    return "answer" if branch == PARENT else f"thread {int(branch.partition('#')[2]) + 1}"


def _colour(writer: str, theme: Theme) -> str:
    if writer == JOIN:
        return theme.threads[-1]
    return theme.answer if writer == PARENT else theme.threads[int(writer.partition("#")[2])]


def _table(axes: Any, row: int, table: Table, block_size: int, theme: Theme) -> None:
    """The blocks of a table side by side, each filled by who computed its tokens."""
    for place, block_id in enumerate(table.block_ids):
        axes.broken_barh(
            [(place + 0.03, 0.94)], (row - 0.36, 0.72), facecolor="none", edgecolor=theme.faint, linewidth=0.8
        )
        axes.text(
            place + 0.5, row, str(block_id), color=theme.ink, ha="center", va="center", fontsize=8, zorder=3
        )
        tokens = slice(place * block_size, (place + 1) * block_size)
        for first, num, writer, moved in _runs(table.writers[tokens], table.moved[tokens]):
            slot = 0.94 / block_size
            span = [(place + 0.03 + first * slot, num * slot)]
            look: dict[str, Any] = {"facecolor": _colour(writer, theme), "alpha": 0.55, "linewidth": 0}
            if moved:
                look |= {"hatch": "////", "edgecolor": theme.ground}
            axes.broken_barh(span, (row - 0.36, 0.72), **look)


def _runs(writers: Iterable[str], moved: Iterable[bool]) -> list[tuple[int, int, str, bool]]:
    """Neighbouring slots that are alike: the first, how many, who computed them, whether they were moved."""
    found, at = [], 0
    for (writer, is_moved), slots in groupby(zip(writers, moved, strict=True)):
        num = len(list(slots))
        found.append((at, num, writer, is_moved))
        at += num
    return found


def _legend(drawn: Any, num_threads: int, theme: Theme) -> None:
    from matplotlib.patches import Patch

    named = {"the answer": PARENT} | {f"thread {i + 1}": f"{PARENT}#{i}" for i in range(num_threads)}
    patches = [
        Patch(facecolor=_colour(writer, theme), alpha=0.55, label=name)
        for name, writer in (named | {"the join": JOIN}).items()
    ]
    patches.append(
        Patch(facecolor=theme.faint, alpha=0.55, hatch="////", edgecolor=theme.ground, label="moved")
    )
    legend = drawn.legend(
        handles=patches, loc="outside lower left", ncols=len(patches), frameon=False, labelcolor=theme.ink,
        title="computed by", title_fontproperties={"size": 8}, alignment="left", fontsize=8,
    )  # fmt: skip
    legend.get_title().set_color(theme.ink)
