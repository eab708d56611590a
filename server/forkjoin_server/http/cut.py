"""The end of an answer that a drain has no more time for: an error that its client can tell from an end."""

from __future__ import annotations

import json
from collections.abc import Awaitable

from forkjoin_server.asgi import Json, Message, Send
from forkjoin_server.routes import MESSAGES, RESPONSES

#: Routes whose streams have named events; the others end with ``[DONE]``.
_NAMED = (RESPONSES, MESSAGES)


class Answer:
    """Hands an answer on to ``send``, and knows how far it has come."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message | None = None
        self._is_over = False

    def send(self, message: Message) -> Awaitable[None]:
        """Take a message of the answer."""
        if message["type"] == "http.response.start":
            self._start = message
        elif not message.get("more_body"):
            self._is_over = True
        return self._send(message)

    @property
    def has_begun(self) -> bool:
        """Whether the client has been told a status, which then can't be another."""
        return self._start is not None

    async def end(self, path: str, error: Json) -> None:
        """End an answer that has begun: a stream with ``error`` as vLLM writes one, any other as it is."""
        if self._is_over or self._start is None:
            return
        body = b""
        if b"text/event-stream" in dict(self._start["headers"]).get(b"content-type", b""):
            body = _event(path, error)
        await self._send({"type": "http.response.body", "body": body})


def _event(path: str, error: Json) -> bytes:
    if path.startswith(_NAMED):
        return f"event: error\ndata: {json.dumps({'type': 'error'} | error)}\n\n".encode()
    return f"data: {json.dumps(error)}\n\ndata: [DONE]\n\n".encode()
