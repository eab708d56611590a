"""Events of a stream that an OpenAI client made. The SDK itself is not needed to import this."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Iterator
from typing import Protocol

from forkjoin.streams import AsyncEventStream, Connection, EventStream


class Stream(Protocol):
    """What is used of ``openai.Stream``."""

    @property
    def response(self) -> Connection: ...

    def __iter__(self) -> Iterator[object]: ...


class AsyncStream(Protocol):
    """What is used of ``openai.AsyncStream``."""

    def __aiter__(self) -> AsyncIterator[object]: ...

    def close(self) -> Awaitable[None]: ...


def events_of(stream: Stream) -> EventStream:
    """The events of ``stream``. Errors of the connection are the SDK's own.

    Example::

        stream = openai.OpenAI(…).chat.completions.create(
            …, stream=True, stream_options={"include_threads": True, "include_usage": True}
        )
        with events_of(stream) as events:
            for event in events: ...
    """
    return EventStream(iter(stream), stream.response)


def async_events_of(stream: AsyncStream) -> AsyncEventStream:
    """The events of a stream of ``openai.AsyncOpenAI``."""
    return AsyncEventStream(aiter(stream), stream.close)
