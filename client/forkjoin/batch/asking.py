"""One request of a batch, asked until it has its row.

A request that nobody has answered is asked again, for as long as the server may come back: that loses no
answer when a server restarts. One that was lost or failed *while* it was answered may be what ended the
server, so it is asked a few times only.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import httpx

from forkjoin.asking import Server, group_in, routing
from forkjoin.batch.answers import Row
from forkjoin.batch.lines import Line
from forkjoin.errors import NotConnected, refusal
from forkjoin.parsing import parsed
from forkjoin.retrying import Retries, retry_after_s

#: Refused before anything of it was done, or cut by a server that ends: they may be asked again.
_PASSING = frozenset({408, 429, 502, 503, 504})
_NO_KEY = (401, 403)
#: A request that is lost or fails so often gets a row that says so.
MAX_LOST = 5
#: The row of a request that nobody refused, and that nobody has answered either.
LOST = "connection_lost"
#: The row of a request that the server itself has ended.
ABORTED = "aborted"
_BACKOFF = Retries(max_retries=1_000_000, max_retry_after_s=float("inf"))
#: Doubled so often, the wait has long come to its cap.
_MAX_DOUBLED = 9
#: How httpx traces that a request has a connection, which may not be a new one.
_SENDING = ".send_request_headers.started"


@dataclass(frozen=True)
class _Again:
    """No answer yet: why, after how long to ask again, and the row if it is not asked again."""

    why: str
    retry_after_s: float | None = None
    row: Row | None = None


class Asker:
    """Asks the requests of a batch, several at a time.

    Args:
        http: what it asks through.
        server: whom.
        patience_s: so long no request may have an answer, and none that reached the server wait for its own,
            until it gives up.
        sleep, clock: to be replaced in tests.
    """

    def __init__(
        self,
        http: httpx.AsyncClient,
        server: Server,
        patience_s: float,
        *,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._http, self._server, self._patience_s = http, server, patience_s
        self._sleep, self._clock = sleep, clock
        #: Requests that have reached the server, and wait for its answer.
        self._num_open = 0
        self._answered_s = clock()
        #: Why the last request that was asked has no answer; None if it has.
        self.trouble: str | None = None

    async def row(self, line: Line) -> Row:
        """The row of ``line``. Raises NotConnected when patience ends, WrongKey if the key is none."""
        num_again = num_lost = 0
        session = routing(group_in(json.loads(line.body)))
        while True:
            outcome = await self._ask(line, session)
            if not isinstance(outcome, _Again):
                self._answered_s, self.trouble = self._clock(), None
                return outcome
            self.trouble = outcome.why
            num_lost += outcome.row is not None
            if outcome.row is not None and num_lost >= MAX_LOST:
                return outcome.row
            waited_s = self._clock() - self._answered_s
            if not self._num_open and waited_s > self._patience_s:
                raise NotConnected(
                    f"expected an answer of {self._server.address}, got none for {waited_s:.0f} s: "
                    f"{outcome.why}: check the address, and that the server runs"
                )
            num_doubled, asked_s = min(num_again, _MAX_DOUBLED), outcome.retry_after_s
            if asked_s is not None:  # no longer than there is patience, or of our own wait
                asked_s = min(asked_s, max(self._patience_s - waited_s, _BACKOFF.cap_s))
            await self._sleep(_BACKOFF.wait_s(num_doubled, None, asked_s, random.random()) or 0.0)
            num_again += 1

    async def _ask(self, line: Line, session: dict[str, str]) -> Row | _Again:
        headers = {"content-type": "application/json", **self._server.headers, **session}
        is_open = False

        async def trace(event: str, _: object) -> None:
            nonlocal is_open
            if event.endswith(_SENDING) and not is_open:
                is_open = True
                self._num_open += 1

        try:
            response = await self._http.post(
                self._server.address + line.url,
                content=line.body,
                headers=headers,
                extensions={"trace": trace},
            )
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            return _Again(_said(error))
        except (httpx.TransportError, httpx.DecodingError) as error:
            why = _said(error)
            return _Again(why, row=_failed(line, LOST, f"{why}, {MAX_LOST} times: the server's log has more"))
        finally:
            self._num_open -= is_open
        return _outcome(line, response)


def _outcome(line: Line, response: httpx.Response) -> Row | _Again:
    """What to make of an answer. Raises WrongKey: no other request would be answered either."""
    status, wait_s = response.status_code, retry_after_s(response.headers, time.time())
    if status in _NO_KEY:
        raise refusal(status, response.headers, response.content, time.time())
    try:
        body = parsed(response.content)
    except ValueError:
        body = None
    if status in _PASSING:
        return _Again(_refused(response), wait_s)
    if isinstance(body, dict) and status == 200 and _is_aborted(body):
        why = "expected a whole answer, got one that the server has aborted"
        return _Again(why, wait_s, _failed(line, ABORTED, f"{why}, {MAX_LOST} times: its log has more"))
    if isinstance(body, dict):
        row = _answered(line, response, body)
        return _Again(_refused(response), wait_s, row) if status >= 500 else row
    why = f"expected JSON, got {status}: {response.text[:200]!r}"
    return _Again(why, wait_s, _failed(line, "unreadable", f"{why}: check the address"))


def _is_aborted(body: dict[str, Any]) -> bool:
    """Whether an engine that ends, or an operator, has cut the answer."""
    choices = body.get("choices")
    ends = (
        [c.get("finish_reason") for c in choices if isinstance(c, dict)] if isinstance(choices, list) else []
    )
    # As /v1/responses says it.
    return "abort" in ends or (body.get("object") == "response" and body.get("status") == "cancelled")


def _answered(line: Line, response: httpx.Response, body: dict[str, Any]) -> Row:
    request_id = response.headers.get("x-request-id") or body.get("id") or line.id
    answer = {"status_code": response.status_code, "request_id": request_id, "body": body}
    return {"id": line.id, "custom_id": line.custom_id, "response": answer, "error": None}


def _failed(line: Line, code: str, message: str) -> Row:
    error = {"code": code, "message": message}
    return {"id": line.id, "custom_id": line.custom_id, "response": None, "error": error}


def _refused(response: httpx.Response) -> str:
    return str(refusal(response.status_code, response.headers, response.content, time.time()))


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")


def fault_of(row: Row) -> str:
    """Why ``row`` is no answer, in a line."""
    if row["error"] is not None:
        return f"{row['error']['code']}: {row['error']['message']}"
    response = row["response"]
    said = response["body"].get("error")
    message = said.get("message") if isinstance(said, dict) else said
    return f"{response['status_code']}: {message}"
