"""So many requests are made ready for the engine at a time: bodies read as JSON, prompts made of them.

All of a burst at once would make each turn of the event loop as long as the burst: who asks for
``/health``, or is refused, would wait for all of it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from forkjoin_scheduler.policy.backlog import Visit

AT_A_TIME = 8
#: One that waits for others meanwhile (for an image, say) lets the next one begin.
LONGEST_S = 1.0


class Preparing:
    """The requests that are made ready, in the order in which they came."""

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(AT_A_TIME)

    @contextlib.asynccontextmanager
    async def of(self, visit: Visit) -> AsyncIterator[None]:
        """Wait for a turn, which is over when ``visit`` is admitted or refused, or after ``LONGEST_S``."""
        await self._free.acquire()
        release = _once(self._free.release)
        before = visit.decided

        def decided() -> None:
            before()
            release()

        visit.decided = decided
        timer = asyncio.get_running_loop().call_later(LONGEST_S, release)
        try:
            yield
        finally:
            timer.cancel()
            release()


def _once(act: Callable[[], None]) -> Callable[[], None]:
    is_done = False

    def acted() -> None:
        nonlocal is_done
        if not is_done:
            is_done = True
            act()

    return acted
