"""``forkjoin trace``: draw an answer that was saved, or that the server has stored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from forkjoin.client import Client
from forkjoin.errors import ForkJoinError
from forkjoin.saved import Saved, read_saved
from forkjoin.summary import summary
from forkjoin.terminal.drawing import DARK, LIGHT, draw
from forkjoin.terminal.lanes_view import table

_STORED = "/v1/responses/"


def run(name: str, client: Callable[[], Client], figures: list[Path], *, is_dark: bool, title: str) -> None:
    """Show the answer ``name``, a file or the id of a stored response, and draw it into ``figures``."""
    saved = _saved(name, client)
    for path in figures:
        draw(saved.lanes, saved.unit, path, DARK if is_dark else LIGHT, title)
    console = Console()
    end = saved.lanes.answer.end or 0.0
    console.print(table(saved.lanes, end, width=console.width, unit=saved.unit))
    console.print(summary(saved.answer, end if saved.unit == "s" else None), highlight=False)


def _saved(name: str, client: Callable[[], Client]) -> Saved:
    path = Path(name)
    if path.is_file():
        try:
            return read_saved(path.read_text())
        except (OSError, UnicodeDecodeError) as error:
            raise ForkJoinError(f"{name}: could not read it: {error}") from error
        except ForkJoinError as error:
            raise ForkJoinError(f"{name}: {error}") from error
    if not name.startswith("resp_"):
        raise ForkJoinError(f"expected a file, or the id of a stored response (resp_…), got {name}")
    with client() as asking:
        return read_saved(asking.get(_STORED + name).text)
