"""Metrics are written out for one scrape at a time, so that many at once do not make one long turn.

Writing them holds the event loop for milliseconds. A hundred connections that ask for them held it for a
hundred times as long, and ``/health`` after them.
"""

from __future__ import annotations

import asyncio

from forkjoin_server.asgi import App, Message, Receive, Send

PATHS = ("/metrics", "/metrics/")


class Scrapes:
    """The scrapes of a front end, in the order in which they came."""

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(1)

    async def answer(self, app: App, scope: Message, receive: Receive, send: Send) -> None:
        """Let ``app`` answer when it is this one's turn, which is over when the answer has been written out.

        Who does not read it holds up nobody.
        """
        await self._free.acquire()
        is_over = False

        def end_turn() -> None:
            nonlocal is_over
            if not is_over:
                is_over = True
                self._free.release()

        async def sent(message: Message) -> None:
            end_turn()
            await send(message)

        try:
            await app(scope, receive, sent)
        finally:
            end_turn()
