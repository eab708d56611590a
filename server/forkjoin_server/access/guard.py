"""Lets a request pass that has an API key, or asks for a route that needs none.

It decides by the path that Starlette's router will see, and before anything of the body is read.
"""

from __future__ import annotations

from collections.abc import Iterator

from starlette._utils import get_route_path

from forkjoin_server import own_responses
from forkjoin_server.access.keys import Key, KeyRing
from forkjoin_server.asgi import Message, Send

_MISSING = "expected an API key, got none: send it as `Authorization: Bearer KEY`, or as `x-api-key: KEY`"
_WRONG = "expected an API key of this server, got another: check it, or ask the server's operator for one"
#: RFC 6455, 7.4.1: the connection violates the server's policy. Before it is accepted, that is a 403.
_POLICY_VIOLATION = 1008


class NotAllowed(Exception):
    """A request without a key where one is needed; the message says what was expected."""


class Guard:
    """``ring`` may be exchanged at any time; with no key in it, every route is open."""

    def __init__(self, ring: KeyRing, open_paths: frozenset[str]) -> None:
        self.ring = ring
        self._open_paths = open_paths

    def key_of(self, scope: Message) -> Key | None:
        """Whose request it is; None where nobody need say. Raises NotAllowed.

        A preflight of CORS can't have a key: browsers send it without, and the middleware of CORS
        answers it, no route does.
        """
        if not self.ring.keys:
            return None
        given = False
        for text in _presented(scope):
            if (key := self.ring.find(text)) is not None:
                return key
            given = True
        if scope["type"] == "http" and (route_path(scope) in self._open_paths or _is_preflight(scope)):
            return None
        raise NotAllowed(_WRONG if given else _MISSING)


def route_path(scope: Message) -> str:
    """The path that the router looks for: decoded, and without the root path that the server was given."""
    path: str = get_route_path(scope)
    return path


async def refuse(error: NotAllowed, scope: Message, send: Send) -> None:
    """Tell the client of ``scope`` that it is not allowed to ask."""
    if scope["type"] == "http" or "websocket.http.response" in scope.get("extensions", {}):
        prefix = "" if scope["type"] == "http" else "websocket."
        path = route_path(scope)

        async def sent(message: Message) -> None:
            await send({**message, "type": prefix + message["type"]})

        await own_responses.respond(
            sent, 401, own_responses.error(str(error), path, 401), [(b"www-authenticate", b"Bearer")]
        )
    else:
        await send({"type": "websocket.close", "code": _POLICY_VIOLATION})


def _presented(scope: Message) -> Iterator[str]:
    """What the request gives as a key: OpenAI's clients as a bearer token, Anthropic's as x-api-key."""
    for name, value in scope["headers"]:
        text = value.decode("latin-1")
        if name == b"x-api-key":
            yield _as_sent(text.strip())
        elif name == b"authorization":
            scheme, _, token = text.partition(" ")
            if scheme.lower() == "bearer":
                yield _as_sent(token.strip())


def _as_sent(text: str) -> str:
    """A header's value is bytes; a key with other than ASCII in it is sent as UTF-8."""
    try:
        return text.encode("latin-1").decode()
    except UnicodeDecodeError:
        return text


def _is_preflight(scope: Message) -> bool:
    names = {name for name, _ in scope["headers"]}
    return scope["method"] == "OPTIONS" and {b"origin", b"access-control-request-method"} <= names
