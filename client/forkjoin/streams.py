"""A streamed answer as an iterator of events, from our client's connection or from an OpenAI client's."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping
from typing import Any, Protocol, Self

import httpx

from forkjoin.answer import Answer
from forkjoin.errors import StreamBroken
from forkjoin.events import Event
from forkjoin.parsing import parsed
from forkjoin.reading import AnswerReader
from forkjoin.sse import SseDecoder

_DONE = "[DONE]"


class Connection(Protocol):
    """What is used of a response: httpx's, or that of the library that an OpenAI client reads by."""

    @property
    def extensions(self) -> MutableMapping[str, Any]: ...

    def close(self) -> None: ...


class EventStream(Iterator[Event]):
    """The events of one answer. Leaving the ``with`` block, or ``close``, closes the connection.

    The server stops an answer whose connection is closed, with all its threads.
    """

    def __init__(self, chunks: Iterator[object], response: Connection) -> None:
        self._response = response
        self._reader = AnswerReader()
        self._is_cancelled = False
        self._events = self._read(chunks)

    @property
    def answer(self) -> Answer:
        """The answer as it is so far."""
        return self._reader.answer

    def __next__(self) -> Event:
        return next(self._events)

    def _read(self, chunks: Iterator[object]) -> Iterator[Event]:
        try:
            for chunk in chunks:
                yield from self._reader.feed(chunk)
            yield self._reader.end()
        except Exception:  # by which error a lost connection is told, is the library's that reads it
            if not self._is_cancelled:
                raise
        finally:
            self._response.close()

    def cancel(self) -> None:
        """End the answer, from any thread: the loop over the events ends, without an error."""
        self._is_cancelled = True
        network = self._response.extensions.get("network_stream")
        connection = network.get_extra_info("socket") if network is not None else None
        if connection is not None:
            # A blocked read ends by this, and not by the close of its file.
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection. Nothing happens if the answer is complete."""
        self._response.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncEventStream(AsyncIterator[Event]):
    """The same for ``async for``. A task that is cancelled in ``async with`` closes the connection, too."""

    def __init__(self, chunks: AsyncIterator[object], close: Callable[[], Awaitable[None]]) -> None:
        self._close = close
        self._reader = AnswerReader()
        self._events = self._read(chunks)

    @property
    def answer(self) -> Answer:
        """The answer as it is so far."""
        return self._reader.answer

    async def __anext__(self) -> Event:
        return await anext(self._events)

    async def _read(self, chunks: AsyncIterator[object]) -> AsyncIterator[Event]:
        try:
            async for chunk in chunks:
                for event in self._reader.feed(chunk):
                    yield event
            yield self._reader.end()
        finally:
            await self._close()

    async def aclose(self) -> None:
        """Close the connection. Nothing happens if the answer is complete."""
        await self._close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._close()


class Chunks:
    """The JSON of a response's events, from its bytes, until it says that it is complete."""

    def __init__(self) -> None:
        self._decoder = SseDecoder()
        self.is_done = False

    def of(self, received: bytes) -> list[Any]:
        """The chunks that ``received`` completes."""
        events = self._decoder.feed(received)
        self.is_done = self.is_done or _DONE in events
        return [_parsed(event) for event in events if event != _DONE]


def read(response: httpx.Response) -> Iterator[object]:
    """The chunks of a streamed response. Raises StreamBroken if it ends before its time."""
    chunks = Chunks()
    try:
        for received in response.iter_bytes():
            yield from chunks.of(received)
            if chunks.is_done:
                return
    except httpx.HTTPError as error:
        raise _cut(error) from error
    raise _cut("its end")


async def read_async(response: httpx.Response) -> AsyncIterator[object]:
    """The chunks of a streamed response. Raises StreamBroken if it ends before its time."""
    chunks = Chunks()
    try:
        async for received in response.aiter_bytes():
            for chunk in chunks.of(received):
                yield chunk
            if chunks.is_done:
                return
    except httpx.HTTPError as error:
        raise _cut(error) from error
    raise _cut("its end")


def _parsed(event: str) -> Any:
    try:
        return parsed(event)
    except ValueError as error:
        raise StreamBroken(
            f"expected JSON in the stream, got {event[:100]!r}: is this a chat server?"
        ) from error


def _cut(seen: object) -> StreamBroken:
    said = seen if isinstance(seen, str) else f"{type(seen).__name__}: {seen}"
    return StreamBroken(f"expected more of the answer, got {said}: the connection was lost; ask again")
