"""How far long work is: a bar on a terminal, and on any output a line for each part that is done.

The bar is drawn when a part is done and not beside it: that would disturb what is measured. Of more than a
hundred parts it is drawn once for each hundredth.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Work:
    """Work in parts, which are counted as they are done."""

    def __init__(self, progress: Progress, name: str, num_parts: int, num_done: int) -> None:
        self._progress = progress
        self._task = progress.add_task(name, total=num_parts, completed=num_done)

    def done(self, num_parts: int = 1) -> None:
        """So many parts more are done."""
        task = self._progress.tasks[self._task]
        before = int(task.percentage)
        self._progress.advance(self._task, num_parts)
        if int(task.percentage) > before:
            self._progress.refresh()

    def say(self, line: str) -> None:
        """Print ``line`` above the bar; nothing but it where there is none."""
        console = self._progress.console
        console.print(line, markup=False, highlight=False, soft_wrap=True)
        console.file.flush()


@contextmanager
def working(
    name: str, num_parts: int, *, num_done: int = 0, console: Console | None = None
) -> Iterator[Work]:
    """Show how much of ``num_parts`` is done and how long the rest will take, until the end of the block.

    ``console``: standard error, unless another is given.
    """
    console = console or Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, auto_refresh=False, disable=not console.is_terminal) as progress:
        yield Work(progress, name, num_parts, num_done)
