"""Weaves the thread events of one request into vLLM's response to it.

Events reach a client no later than the content that follows them: they are written before each
chunk of vLLM's, and by a task of their own while vLLM has nothing to say. How they look is the
route's business (a ``Presenter``); a chunk that nothing has to be said of passes byte by byte.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from forkjoin_scheduler.publish.events import Event
from forkjoin_server.answer.logprobs import has_injected, marked
from forkjoin_server.answer.threads import ThreadLog
from forkjoin_server.asgi import Json, Message, Send
from forkjoin_server.routes import FINAL_EVENTS

#: In the JSON of a chunk; in its text a quotation mark follows a backslash.
_USAGE = re.compile(rb'"usage":\s*\{')


class Presenter(Protocol):
    """How one route shows threads. Decides only; nothing that it is given is changed."""

    @property
    def is_ready(self) -> bool:
        """Whether the stream has come to where threads may be shown."""
        ...

    def pass_on(self, chunk: Json) -> list[Json]:
        """``chunk`` of vLLM's stream as the client gets it, with what must stand before it."""
        ...

    def show(self, entries: list[Json]) -> list[Json]:
        """The chunks that say ``entries`` (of ``ThreadLog.delta``)."""
        ...

    def whole(self, response: Json) -> Json:
        """``response``, which is not streamed, with its threads."""
        ...


class PassThrough:
    """The client did not ask for its threads."""

    is_ready = True

    def pass_on(self, chunk: Json) -> list[Json]:
        return [chunk]

    def show(self, entries: list[Json]) -> list[Json]:
        return []

    def whole(self, response: Json) -> Json:
        return response


@dataclass
class Weaver:
    """Writes vLLM's response to the client with the thread events in it, and the usage corrected."""

    raw_send: Send
    queue: asyncio.Queue[Event]
    log: ThreadLog
    presenter: Presenter
    #: Called when all is known that the answer says of threads, before its end is written.
    at_end: Callable[[], object] = lambda: None
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _streams: bool = False
    #: Of the answer, None until it has begun.
    status: int | None = None
    _start: Message | None = None
    _buffer: bytes = b""
    _pending: deque[Event] = field(default_factory=deque)

    def send(self, message: Message) -> Awaitable[None]:
        """Take a message of vLLM's response."""
        # Most chunks of most streams: no coroutine and no lock of ours for these.
        if self._streams and self._has_nothing_to_say and not self._lock.locked():
            return self.raw_send(message)
        return self._take(message)

    async def _take(self, message: Message) -> None:
        async with self._lock:
            if message["type"] == "http.response.start":
                await self._begin(message)
            elif self._streams:
                await self._stream(message)
            else:
                await self._whole(message)

    async def pump(self) -> None:
        """Write thread events that come while vLLM has nothing to say."""
        while True:
            # Kept in order: the holder of the lock may write it before this task does.
            self._pending.append(await self.queue.get())
            async with self._lock:
                await self._emit_due()

    def hear(self) -> None:
        """Take in the events that have come, showing none; for when the answer is over."""
        for event in self._due():
            self.log.delta(event)

    async def _begin(self, message: Message) -> None:
        headers, self.status = dict(message["headers"]), message["status"]
        self._streams = b"text/event-stream" in headers.get(b"content-type", b"")
        if self._streams:
            await self.raw_send(message)
        else:
            self._start = message

    @property
    def _has_nothing_to_say(self) -> bool:
        """Whether a stream is vLLM's as it is so far: nothing forked, and nobody asks."""
        return not (self.log.has_news or self._pending or not self.queue.empty() or self._buffer)

    async def _whole(self, message: Message) -> None:
        """Gather a JSON response; correct it if the request forked, or its client asked for it."""
        self._buffer += message.get("body", b"")
        if message.get("more_body"):
            return
        self.hear()
        body = self._buffer
        if self._start is not None and self._start["status"] == 200 and self.log.has_news:
            self.log.cut_open()
            response = json.loads(body)
            if isinstance(response, dict):  # or null, to a client that has hung up
                told = marked(response) if has_injected(body) else response
                body = json.dumps(self.presenter.whole(self._corrected(told))).encode()
        self.at_end()
        start = self._start or {"type": "http.response.start", "status": 500, "headers": []}
        start["headers"] = [
            (k, str(len(body)).encode() if k.lower() == b"content-length" else v) for k, v in start["headers"]
        ]
        await self.raw_send(start)
        await self.raw_send({"type": "http.response.body", "body": body})

    async def _stream(self, message: Message) -> None:
        """Hand on complete server-sent events, each after the thread events that precede it."""
        self._buffer += message.get("body", b"")
        *complete, self._buffer = self._buffer.split(b"\n\n")
        for event in complete:
            await self._emit_due()
            chunk = _chunk(event) if self._is_concerned_by(event) else None
            if chunk is not None and _is_end(chunk):
                await self._show(self.log.cut_open())
                self.at_end()
            told = marked(chunk) if chunk is not None and has_injected(event) else chunk
            chunks = [] if told is None else self.presenter.pass_on(self._corrected(told))
            if chunk is None or chunks == [chunk]:
                await self._write(event + b"\n\n")
            else:
                await self._write(b"".join(map(_sse, chunks)))
            await self._emit_due()
        if not message.get("more_body"):
            await self.raw_send({"type": "http.response.body", "body": self._buffer})

    def _is_concerned_by(self, event: bytes) -> bool:
        """Whether an event of vLLM's may have to change: to read each takes longer than to pass it on."""
        return (
            not isinstance(self.presenter, PassThrough)
            or _USAGE.search(event) is not None
            or has_injected(event)
        )

    async def _emit_due(self) -> None:
        """Write all events that have come, in their order, once the presenter is ready for them."""
        if not self.presenter.is_ready:
            return
        for event in self._due():
            await self._show(self.log.delta(event))

    async def _show(self, entries: list[Json]) -> None:
        if entries and (chunks := self.presenter.show(entries)):
            await self._write(b"".join(map(_sse, chunks)))

    def _due(self) -> Iterator[Event]:
        """The events that have come, in their order, each taken as it is yielded."""
        while self._pending or not self.queue.empty():
            yield self._pending.popleft() if self._pending else self.queue.get_nowait()

    def _corrected(self, chunk: Json) -> Json:
        """``chunk`` with the usage corrected that it has, or that the response it carries has."""
        if not self.log.has_news:
            return chunk
        inner = chunk.get("response")
        if isinstance(inner, dict):
            return chunk | {"response": self._corrected(inner)}
        if not chunk.get("usage"):
            return chunk
        # vLLM counts each answer by itself in a stream, in chunks that hold some of it.
        choices = chunk.get("choices") if self._streams else None
        answer = choices[0]["index"] if choices else None
        return chunk | {"usage": self.log.correct_usage(chunk["usage"], answer)}

    async def _write(self, body: bytes) -> None:
        await self.raw_send({"type": "http.response.body", "body": body, "more_body": True})


def _chunk(event: bytes) -> Json | None:
    """The JSON of an event's data (most routes name their events), None for ``[DONE]`` and comments."""
    data = event.partition(b"data: ")[2]
    if not data.startswith(b"{"):
        return None
    chunk: Json = json.loads(data)
    return chunk


def _is_end(chunk: Json) -> bool:
    """Whether an answer ends with ``chunk``."""
    if "type" in chunk:
        return chunk["type"] in FINAL_EVENTS
    return any(isinstance(c, dict) and c.get("finish_reason") for c in chunk.get("choices") or ())


def _sse(chunk: Json) -> bytes:
    """``chunk`` as a server-sent event; a route whose chunks have a type names its events by it."""
    name = f"event: {chunk['type']}\n" if "type" in chunk else ""
    return f"{name}data: {json.dumps(chunk)}\n\n".encode()
