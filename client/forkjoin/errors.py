"""The errors of this package.

ForkJoinError
├── NotConnected        nobody answered at the address
├── Unreadable          the answer is not what was asked for
├── RequestRefused      the server answered with an error
│   ├── BadRequest      the request is wrong             (400, 404, 413, 422)
│   ├── Conflict        what it is about has changed     (409)
│   ├── WrongKey        the API key is missing or wrong  (401, 403)
│   ├── Overloaded      ask again later                  (408, 429, 503)
│   └── ServerFailed    the server's own error           (any other)
└── StreamBroken        a stream ended early, failed, or held what no answer has
"""

from __future__ import annotations

from collections.abc import Mapping

from forkjoin.parsing import parsed
from forkjoin.retrying import retry_after_s


class ForkJoinError(Exception):
    """Base of all errors of this package."""


class NotConnected(ForkJoinError):
    """Nobody answered at the address, or the connection was lost before an answer began."""


class Unreadable(ForkJoinError):
    """The server answered without an error, but not with what was asked for: it may be another program."""


class StreamBroken(ForkJoinError):
    """A stream ended before its answer did, reported an error, or held what no answer has."""


class RequestRefused(ForkJoinError):
    """The server answered with an error: its ``status``, and when to ask again if it said so."""

    def __init__(self, message: str, *, status: int, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s


class BadRequest(RequestRefused):
    """The request is wrong; the message says what the server expected."""


class Conflict(RequestRefused):
    """What the request is about is not as it expects: the thread to cancel has ended already."""


class WrongKey(RequestRefused):
    """The API key is missing, or none of the server's."""


class Overloaded(RequestRefused):
    """The server has too much to do, or is ending."""


class ServerFailed(RequestRefused):
    """The server failed."""


_KINDS: dict[int, tuple[type[RequestRefused], str]] = {
    400: (BadRequest, "change the request"),
    404: (BadRequest, "check the address, and the name or id asked for"),
    409: (Conflict, "nothing is left to do"),
    413: (BadRequest, "send less"),
    422: (BadRequest, "change the request"),
    401: (WrongKey, "give a key of this server's as api_key, or in FORKJOIN_CLIENT_API_KEY"),
    403: (WrongKey, "give a key that may do this"),
    408: (Overloaded, "ask again"),
    429: (Overloaded, "ask again later"),
    503: (Overloaded, "ask again later"),
}


def refusal(status: int, headers: Mapping[str, str], body: bytes, now_s: float) -> RequestRefused:
    """The error that an answer of ``status`` is. ``now_s``: the time, in seconds since 1970."""
    kind, advice = _KINDS.get(status, (ServerFailed, "ask again; the server's log has more"))
    wait_s = retry_after_s(headers, now_s)
    if wait_s is not None and kind is Overloaded:
        advice = f"ask again in {wait_s:.0f} s"
    return kind(
        f"expected an answer, got {status}: {_said(body)}: {advice}", status=status, retry_after_s=wait_s
    )


def _said(body: bytes) -> str:
    """What an error's body says, in OpenAI's shape or any other."""
    try:
        error = parsed(body)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace") or "nothing"
