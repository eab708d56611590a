"""What an error's body repeats of its request: at most 200 characters, also if vLLM wrote the error.

vLLM's own errors repeat values, names and whole lists of a request.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from forkjoin_scheduler.excerpt import cut
from forkjoin_server.asgi import Message, Send

MAX_CHARS = 200
#: A text is compared with the request piece by piece. Of 200 characters at a stretch, seven pieces are whole.
_PIECE, _MAX_PIECES = 25, 6
#: Longer texts are cut without a look; no sentence of vLLM's is so long by itself.
_MAX_LOOKED_AT = 2000
#: Characters of a request that is looked through, on the event loop, for each piece again:
#: 0.2 s; 60 MB took 2.4 s.
MAX_GIVEN = 4 << 20


class ErrorBodies:
    """Hands an answer on to ``send``; of an error, only what it may repeat.

    ``request`` gives the text that came in, asked for when there is an error to compare with it.
    """

    def __init__(self, send: Send, request: Callable[[], str]) -> None:
        self._send, self._request = send, request
        self._start: Message | None = None
        self._body = b""

    def send(self, message: Message) -> Awaitable[None]:
        """Take a message of the answer."""
        # Most are no errors': no coroutine of ours for these.
        is_error = self._start is not None or message.get("status", 200) >= 400
        return self._keep(message) if is_error else self._send(message)

    async def _keep(self, message: Message) -> None:
        if self._start is None:
            self._start = message
            return
        self._body += message.get("body", b"")
        if not message.get("more_body"):
            await self._end(self._start)

    async def _end(self, start: Message) -> None:
        body = bounded(self._body, self._request)
        headers = [(k, v) for k, v in start["headers"] if k.lower() != b"content-length"]
        await self._send({**start, "headers": [*headers, (b"content-length", str(len(body)).encode())]})
        await self._send({"type": "http.response.body", "body": body})


def bounded(body: bytes, request: Callable[[], str]) -> bytes:
    """The ``body`` of an error, with each text in it cut that repeats much of the request."""
    if len(body) <= MAX_CHARS:
        return body
    try:
        error = json.loads(body)
    except (ValueError, RecursionError):
        return body[:MAX_CHARS]
    given = request()
    return json.dumps(_mapped(error, lambda text: _cut(text, given))).encode()


def _cut(text: str, given: str) -> str:
    if len(text) <= MAX_CHARS:
        return text
    if len(text) > _MAX_LOOKED_AT or len(given) > MAX_GIVEN:
        return cut(text, MAX_CHARS)
    pieces = (text[at : at + _PIECE] for at in range(0, len(text) - _PIECE + 1, _PIECE))
    if sum(piece in given for piece in pieces) <= _MAX_PIECES:
        return text
    return cut(text, MAX_CHARS)


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_mapped(item, change) for item in value]
    if isinstance(value, dict):
        return {change(key): _mapped(item, change) for key, item in value.items()}
    return value


def texts(value: Any) -> Iterator[str]:
    """All texts in ``value``, JSON, keys too. No recursion: how deep it nests is the client's choice."""
    left = [value]
    while left:
        item = left.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, list):
            left += item
        elif isinstance(item, dict):
            yield from item
            left += item.values()
