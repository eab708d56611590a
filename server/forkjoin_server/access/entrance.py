"""One HTTP request's way to the engine: admitted, or refused at once, which its client is told either way.

vLLM begins a stream before the request has come to the engine, some with events. So a stream is held back
until then: a refusal still has a status of its own.
"""

from __future__ import annotations

import asyncio
import math

from forkjoin_scheduler.errors import BadRequestOptions, Overloaded
from forkjoin_scheduler.policy.backlog import Visit
from forkjoin_scheduler.request.visits import BACKLOG
from forkjoin_server import own_responses
from forkjoin_server.asgi import Message, Send
from forkjoin_server.operate import metrics

_BUSY = (429, 503)


class Entrance:
    """Hands the answer to ``visit`` on to ``send``. Of a refused one nothing is, but the refusal."""

    def __init__(self, visit: Visit, path: str, send: Send) -> None:
        self._visit, self._path, self._send = visit, path, send
        self._held: list[Message] = []
        self._has_begun = False
        self._releasing: asyncio.Task[None] | None = None
        visit.decided = self._decided

    async def send(self, message: Message) -> None:
        """Take a message of vLLM's answer."""
        if self._visit.refused is not None and not self._has_begun:
            return
        if self._held and not self._visit.is_in:
            self._held.append(message)
            return
        if message["type"] == "http.response.start":
            headers = dict(message["headers"])
            if not self._visit.is_in and headers.get(b"content-type", b"").startswith(b"text/event-stream"):
                self._held.append(message)
                return
            if message["status"] in _BUSY and b"retry-after" not in headers:
                retry = (b"retry-after", str(BACKLOG.retry_after_s()).encode())
                message = {**message, "headers": [*message["headers"], retry]}
        await self._release()
        self._has_begun = True
        await self._send(message)

    async def end(self) -> None:
        """The application is done with it: tell the client if it was refused."""
        if (error := self._visit.refused) is not None and not self._has_begun:
            await refuse(error, self._path, self._send)
        else:
            await self._release()

    def _decided(self) -> None:
        if self._visit.refused is None and self._held:
            self._releasing = asyncio.get_running_loop().create_task(self._release_held())

    async def _release(self) -> None:
        if self._releasing is not None:
            await self._releasing
        await self._release_held()

    async def _release_held(self) -> None:
        held, self._held = self._held, []
        for message in held:
            self._has_begun = True
            await self._send(message)


async def refuse(error: Overloaded | BadRequestOptions, path: str, send: Send) -> None:
    """Tell a client what is wrong; or that there is no room for what it asks, and when there will be."""
    if isinstance(error, BadRequestOptions):
        await own_responses.respond(send, 400, own_responses.error(str(error), path, param=error.field))
        return
    metrics.SERVER.refuse(error.reason)
    after = [] if error.status == 400 else [(b"retry-after", str(math.ceil(error.retry_after_s)).encode())]
    await own_responses.respond(
        send, error.status, own_responses.error(str(error), path, error.status), after
    )
