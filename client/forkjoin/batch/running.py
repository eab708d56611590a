"""All requests of a batch, until each has its row, somebody ends the run, or there is no server any more."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from forkjoin.batch.answers import Answers, Row, is_answer
from forkjoin.batch.asking import Asker, fault_of
from forkjoin.batch.lines import Line
from forkjoin.errors import ForkJoinError

#: How often rows are brought to the disk, and how often somebody who waits is told how far it is.
SYNC_S, SAY_S = 1.0, 10.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(ForkJoinError):
    """A signal has ended the run."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(f"ended by {number.name}")
        #: What a shell says of a command that this signal has ended.
        self.status = 128 + number


@dataclass
class Progress:
    """How far a batch is."""

    num_lines: int
    num_answered: int = 0
    num_failed: int = 0
    #: Of the first request that has failed: its ``custom_id``, and why.
    first_fault: str | None = None

    def add(self, row: Row) -> None:
        """Count a row."""
        if is_answer(row):
            self.num_answered += 1
            return
        self.num_failed += 1
        if self.first_fault is None:
            self.first_fault = f"{row['custom_id']!r}: {fault_of(row)}"

    def __str__(self) -> str:
        failed = f", {self.num_failed} failed" if self.num_failed else ""
        return f"{self.num_answered} of {self.num_lines} answered{failed}"


class Run:
    """Asks those requests of a batch that have no answer.

    Args:
        lines: of the input.
        answers: where each row goes, as soon as it is there.
        say: is told how far it is, again and again.
    """

    def __init__(self, lines: list[Line], answers: Answers, say: Callable[[str], None]) -> None:
        self._answers, self._say = answers, say
        self.pending = [line for line in lines if line.custom_id not in answers.answered]
        self.progress = Progress(len(lines), len(lines) - len(self.pending))

    async def ask_all(self, asker: Asker, max_concurrency: int, why_over: Callable[[], str | None]) -> None:
        """Ask, ``max_concurrency`` requests at a time, until each has its row.

        ``why_over`` says why there will be no answers any more, and None while there may be.
        Raises Interrupted, ForkJoinError if there is no server, and OSError if a row can't be written. The
        rows that have come before are written.
        """
        lines = iter(self.pending)
        num_tasks = min(max_concurrency, len(self.pending))
        asking = asyncio.gather(*(self._ask_each(lines, asker) for _ in range(num_tasks)))
        keeping = asyncio.create_task(self._keep(asker, why_over))
        with _signalled() as signalled:
            ends: tuple[asyncio.Future[Any], ...] = (asking, keeping, signalled)
            try:
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                if signalled.done():
                    raise Interrupted(signalled.result())
                await (asking if asking.done() else keeping)
            finally:
                asking.cancel()
                keeping.cancel()
                await asyncio.gather(asking, keeping, return_exceptions=True)
                self._answers.sync()

    async def _ask_each(self, lines: Iterator[Line], asker: Asker) -> None:
        """Ask one after the other of ``lines``, which several tasks take from."""
        for line in lines:
            row = await asker.row(line)
            self._answers.append(row)
            self.progress.add(row)

    async def _keep(self, asker: Asker, why_over: Callable[[], str | None]) -> None:
        """Sync and say how far it is, until there will be no answers any more."""
        loop = asyncio.get_running_loop()
        said_s = loop.time()
        while (reason := why_over()) is None:
            self._answers.sync()
            if loop.time() - said_s >= SAY_S:
                said_s = loop.time()
                self._say(f"{self.progress}; {asker.trouble}" if asker.trouble else str(self.progress))
            await asyncio.sleep(SYNC_S)
        raise ForkJoinError(reason)


@contextlib.contextmanager
def _signalled() -> Iterator[asyncio.Future[signal.Signals]]:
    """Has a result when this process is told to end, which does not end it by itself meanwhile."""
    loop = asyncio.get_running_loop()
    signalled: asyncio.Future[signal.Signals] = loop.create_future()

    def end(number: signal.Signals) -> None:
        if not signalled.done():
            signalled.set_result(number)

    for number in _SIGNALS:
        loop.add_signal_handler(number, end, number)
    try:
        yield signalled
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
