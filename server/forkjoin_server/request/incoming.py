"""The body of a request, read up to a limit. What is longer is refused before it is read whole.

A body is kept until its request is over. So those of all requests together have a limit, too.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator

from pydantic import BaseModel, ConfigDict, Field

from forkjoin_scheduler.errors import Overloaded
from forkjoin_server.asgi import Message, Receive, Send

MIB = 1 << 20
#: Of a body that takes longer than a stall; a client with the slowest modem sends more.
MIN_BYTES_PER_S = 500


class BodySettings(BaseModel):
    """The settings of request bodies."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    #: Takes a context of a million tokens with images beside it. OpenAI takes 50 MB, Anthropic 32.
    max_body_mib: int = Field(
        default=64,
        ge=1,
        description="Size of one request body in MiB, uploads included. A larger body gets a 413.",
    )
    max_bodies_mib: int = Field(
        default=2048,
        ge=1,
        description="Size in MiB of the bodies of all unanswered requests of one API server. Further "
        "requests get a 503.",
    )
    #: A long conversation of an agent with its tools' schemas has some thousands.
    max_body_objects: int = Field(
        default=20_000,
        ge=1,
        description="Objects in one request body: messages, their parts, tools and their schemas. A body "
        "with more gets a 400.",
    )


class BodyTooLarge(Exception):
    """A body is over the limit. No ValueError: vLLM's handlers would answer that with a 400."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(
            f"the body: expected at most {max_bytes // MIB} MiB (the server's --max-body-mib), got more"
        )


class BodyStalled(Exception):
    """Nothing more of a body has come for too long, or too little of it."""

    def __init__(self, stall_s: float, num_bytes: int) -> None:
        super().__init__(
            f"the body: expected the rest of it within {stall_s:g} s (the server's --client-stall-s), and "
            f"after those at least {MIN_BYTES_PER_S} bytes a second, got {num_bytes} bytes: send it again"
        )


def check_length(scope: Message, max_bytes: int) -> None:
    """Raise BodyTooLarge where the headers say so already."""
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value[:20]) > max_bytes:
            raise BodyTooLarge(max_bytes)


class Kept:
    """The bytes of all bodies that are kept at the moment."""

    #: Told a client whose body is one too many: bodies come and go in seconds.
    RETRY_S = 1

    def __init__(self) -> None:
        self.num_bytes = 0

    @contextlib.contextmanager
    def body(self, max_bytes: int) -> Iterator[Callable[[int], None]]:
        """Count one more body for as long as this lasts: called with the bytes of each part of it.

        The call raises Overloaded where all come to more than ``max_bytes``; a body that finds no other
        may be as large as it is.
        """
        own = 0

        def count(num_bytes: int) -> None:
            nonlocal own
            if self.num_bytes > own and self.num_bytes + num_bytes > max_bytes:
                raise Overloaded(
                    f"expected at most {max_bytes // MIB} MiB of bodies of requests at once (the server's "
                    "--max-bodies-mib), got more: ask again later, or elsewhere",
                    reason="queued_bodies",
                    status=503,
                    retry_after_s=self.RETRY_S,
                )
            own += num_bytes
            self.num_bytes += num_bytes

        try:
            yield count
        finally:
            self.num_bytes -= own


async def read(receive: Receive, max_bytes: int, count: Callable[[int], None], stall_s: float) -> bytes:
    """The whole body; ``count`` is called with the bytes of each part before it is kept.

    Raises BodyTooLarge as soon as more has come, BodyStalled where no part of it came for ``stall_s``
    seconds or fewer than ``MIN_BYTES_PER_S`` came after the first ``stall_s``, and what ``count`` raises.
    """
    parts, num_bytes = [], 0
    now = asyncio.get_running_loop().time
    began = now()
    while True:
        due = min(now() + stall_s, began + stall_s + num_bytes / MIN_BYTES_PER_S)
        try:
            async with asyncio.timeout_at(due):
                message = await receive()
        except TimeoutError as error:
            raise BodyStalled(stall_s, num_bytes) from error
        part = message.get("body", b"")
        num_bytes += len(part)
        if num_bytes > max_bytes:
            raise BodyTooLarge(max_bytes)
        count(len(part))
        parts.append(part)
        if not message.get("more_body"):
            return b"".join(parts)


class Counted:
    """Hands on a body that is not read here, an upload's, until it is over the limit.

    The application may make an answer of its own of the error that it meets then. So that is kept back,
    and ``check`` raises.
    """

    def __init__(self, receive: Receive, send: Send, max_bytes: int) -> None:
        self._receive, self._send, self._max_bytes = receive, send, max_bytes
        self._num_bytes = 0

    async def receive(self) -> Message:
        """The next part of the body. Raises BodyTooLarge if it is one too many."""
        message = await self._receive()
        self._num_bytes += len(message.get("body", b""))
        self.check()
        return message

    async def send(self, message: Message) -> None:
        """Hand on a part of the answer, unless the body was too large."""
        if self._num_bytes <= self._max_bytes:
            await self._send(message)

    def check(self) -> None:
        """Raise BodyTooLarge if more has come than the limit."""
        if self._num_bytes > self._max_bytes:
            raise BodyTooLarge(self._max_bytes)


def replay(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` that yields ``body`` once, then what the connection says (disconnects)."""
    sent = False

    async def received() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return received
