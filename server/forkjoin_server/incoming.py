"""The body of a request, read up to a limit. What is longer is refused before it is read whole."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from forkjoin_server.weaver import Message, Receive, Send

MIB = 1 << 20


class BodySettings(BaseModel):
    """What ``forkjoin serve`` was told of bodies."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    #: Takes a context of a million tokens with images beside it. OpenAI takes 50 MB, Anthropic 32.
    max_body_mib: int = Field(
        default=64, ge=1, description="MiB of a request's body, uploads included; a larger one is a 413"
    )


class BodyTooLarge(Exception):
    """A body is over the limit. No ValueError: vLLM's handlers would answer that with a 400."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(
            f"the body: expected at most {max_bytes // MIB} MiB (the server's --max-body-mib), got more"
        )


def check_length(scope: Message, max_bytes: int) -> None:
    """Raise BodyTooLarge where the headers say so already."""
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value[:20]) > max_bytes:
            raise BodyTooLarge(max_bytes)


async def read(receive: Receive, max_bytes: int) -> bytes:
    """The whole body. Raises BodyTooLarge as soon as more has come."""
    parts, num_bytes = [], 0
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        num_bytes += len(parts[-1])
        if num_bytes > max_bytes:
            raise BodyTooLarge(max_bytes)
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
