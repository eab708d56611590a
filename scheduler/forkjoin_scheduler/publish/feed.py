"""Where the front end's two halves meet: thread events in, one feed a request out.

The output processor publishes a family's events; the code that serves the request
over HTTP has subscribed to it. Both run in the API server's event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import uuid
from collections.abc import Callable, Iterator

from forkjoin_scheduler.errors import FrontEndPlace
from forkjoin_scheduler.publish.events import Event, InternalError

#: Takes an event and the number of the engine that it comes from, None for one of the front end's own.
Observer = Callable[[Event, int | None], None]

#: Takes events of one of a request's answers, and the number of that answer.
Listener = Callable[[int, list[Event]], None]

#: Beneath vLLM's, whose handler, level and format it so has.
LOG = logging.getLogger("vllm.forkjoin.events")

_KEY = re.compile(r"fj[0-9a-f]{32}")
#: What vLLM's routes put before a request's id.
_PREFIXES = ("chatcmpl", "cmpl", "resp", "generate-tokens")
#: The last key, with what joins it to an id before it.
_KEY_BEHIND = re.compile(r"[-_]fj[0-9a-f]{32}(?!.*fj[0-9a-f]{32})")


def new_key() -> str:
    """A key that survives inside the request ids that vLLM derives from a given one."""
    return f"fj{uuid.uuid4().hex}"


def new_placed_key() -> str:
    """The same, marked as one that names an engine: a UUID of version 8, which RFC 9562 leaves to us."""
    return f"fj{uuid.UUID(int=uuid.uuid4().int & ~(0xF << 76) | 8 << 76).hex}"


def is_placed(key: str) -> bool:
    """Whether ``key`` is of ``new_placed_key``."""
    return uuid.UUID(hex=key.removeprefix("fj")).version == 8


def key_in(request_id: str) -> str | None:
    """The key of the request that has this id, None without one.

    The last, for ours stands after the id that the client gave, which may hold a key itself: that
    of the response that the client asks about again, say.
    """
    keys = _KEY.findall(request_id)
    return keys[-1] if keys else None


def without_key(request_id: str) -> str:
    """``request_id`` as it would be without our key: as the client knows it who gave one.

    The same if the client gave none: there is nothing but vLLM's prefix before the key then.
    """
    behind = _KEY_BEHIND.search(request_id)
    if behind is None or request_id[: behind.start()] in _PREFIXES:
        return request_id
    return request_id[: behind.start()] + request_id[behind.end() :]


class Feeds:
    """The open feeds by key, and the observers of all events (metrics)."""

    def __init__(self) -> None:
        self._queues: dict[str, asyncio.Queue[Event]] = {}
        self.observers: list[Observer] = []
        self._listeners: dict[str, Listener] = {}

    def subscribe(self, key: str) -> asyncio.Queue[Event]:
        """Open the feed of the request whose id holds ``key``."""
        return self._queues.setdefault(key, asyncio.Queue())

    def unsubscribe(self, key: str) -> None:
        """Close a feed; later events of its request go to the observers alone."""
        self._queues.pop(key, None)

    @contextlib.contextmanager
    def listening(self, request_id: str, listener: Listener) -> Iterator[None]:
        """Let ``listener`` have the events of each answer to the request of exactly this id, as they come."""
        self._listeners[request_id] = listener
        try:
            yield
        finally:
            del self._listeners[request_id]

    def emit(self, request_id: str, answer: int, events: list[Event]) -> None:
        """Hand on ``events`` of one ``answer`` to who listens to its request."""
        if (listener := self._listeners.get(request_id)) is not None:
            listener(answer, events)

    def publish(self, external_request_id: str | None, events: list[Event], engine: int) -> None:
        """Hand on ``events`` of ``engine``; the request's id is None where it is gone already."""
        known_by = external_request_id or ""
        # An id without a key, of a response in the background, ends in vLLM's count of turns.
        queue = self._queues.get(key_in(known_by) or known_by.rpartition("_")[0])
        for event in events:
            for observe in self.observers:
                try:
                    observe(event, engine)
                except Exception as error:
                    self.contain("observer", error)
            if queue is not None:
                queue.put_nowait(event)

    def contain(self, where: FrontEndPlace, error: Exception) -> None:
        """Log an ``error`` of what is done with events, and count it.

        It is not to reach vLLM's output handler: that would be every client's end.
        """
        LOG.error("an error in fork/join code (%s): the server continues without it", where, exc_info=error)
        for observe in self.observers:
            with contextlib.suppress(Exception):  # it may be the one that has failed
                observe(InternalError(where=where), None)


FEEDS = Feeds()
