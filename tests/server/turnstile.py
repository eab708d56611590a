"""An engine whose steps a test lets it take: what is in flight stays so, however fast or busy the machine is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from tests.importing import ROOT, importable

#: Names the file that says how far the engine may go, in the environment.
VARIABLE = "FORKJOIN_TEST_TURNSTILE"
OPEN = "open"

#: So many steps the engine takes at a time, and so long what they did may take to reach its clients.
NUM_STEPS, SETTLE_S = 5, 0.05
#: Nothing may take longer. It is for a busy machine; a hang is longer than any of this.
LIMIT_S = 240


class Turnstile:
    """The engine of a server that was started with ``flags`` and ``env``.

    Open but in a ``with`` of this: there it takes no step that ``until`` has not let it take.
    """

    flags = (
        *("--logits-processors", "tests.server.turnstile_in_engine:WaitsAtTurnstile"),
        # a server whose engine stands there is ready
        *("--ready-timeout", f"{2 * LIMIT_S}", "--health-timeout", f"{2 * LIMIT_S}"),
    )

    def __init__(self, path: Path) -> None:
        self.env = importable(ROOT) | {VARIABLE: str(path)}
        self._path = path
        self._num_allowed = 0
        write(path, OPEN)

    def __enter__(self) -> Self:
        write(self._path, str(self._num_allowed))
        return self

    def __exit__(self, *_: object) -> None:
        write(self._path, OPEN)

    async def until(self, is_so: Callable[[], bool]) -> None:
        """Let it go on, a few steps at a time, until ``is_so()``."""
        end = time.monotonic() + LIMIT_S
        while not is_so():
            assert time.monotonic() < end, "it did not come to that"
            if self._waits():
                self._num_allowed += NUM_STEPS
                write(self._path, str(self._num_allowed))
            await asyncio.sleep(SETTLE_S)

    def _waits(self) -> bool:
        """Whether the engine has taken all the steps that it may, and would take more."""
        path = waiting(self._path)
        return path.exists() and path.read_text() == str(self._num_allowed)


def waiting(path: Path) -> Path:
    """Where the engine says how many steps it had taken when it came to wait."""
    return path.with_name(f"{path.name}.waiting")


def write(path: Path, text: str) -> None:
    """Write it for readers that never see a part of it."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(text)
    new.replace(path)
