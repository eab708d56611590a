"""What stands before the body of a request: its line and its headers."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from forkjoin_scheduler.excerpt import cut
from forkjoin_server import own_responses

_TOO_LARGE = b"431 Request Header Fields Too Large"
_TOO_SLOW = b"408 Request Timeout"
_BAD_REQUEST = b"400 Bad Request"


def bound_heads(state: Any, seconds: float) -> None:
    """Refuse heads that are too large, or not whole after ``seconds``. ``state``: that of vLLM's app.

    Patch: the protocol of vLLM's uvicorn server, for all connections that come.
    Symptom without it: the parser appends each piece of a header to those before it, so a header of 600 MB
    stops the event loop for a quarter of an hour; connections on which nothing comes stay open; a POST that
    asks for a websocket is handed to the parser of websockets, which waits for its GET for ten seconds, and
    one whose head that parser does not take (a body, 130 headers) is never answered, nor closed. If a
    client hangs up that has sent a request before the answer to its last one, or asked for a websocket then,
    that answer is made for nobody, and written to a connection that is closed: a traceback.
    Upstream: uvicorn bounds heads with its other parser, h11, only; vLLM's limits are that parser's. Remove
    when uvicorn bounds both, opens websockets by GET only, and tells the request that it answers of a hangup
    (it tells the one that it read last).
    """
    server = getattr(state, "server", None)
    if server is not None and server.config.http_protocol_class is HttpToolsProtocol:
        server.config.http_protocol_class = type("_Bounded", (BoundedHeads,), {"seconds": seconds})


class BoundedHeads(HttpToolsProtocol):
    """uvicorn's, with the limits ``--h11-max-incomplete-event-size`` and ``--h11-max-header-count``.

    ``seconds``: in which a head must be whole.
    """

    seconds: float = 60

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: Bytes since the parser had anything whole: of a head, of the sizes of chunks, of trailers.
        self._num_pending = 0
        self._late: asyncio.TimerHandle | None = None
        #: The request that is answered. uvicorn's ``cycle`` is the one that came last.
        self._answered: RequestResponseCycle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        if (cycle := self._unanswered()) is not None:
            cycle.disconnected = True
            cycle.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse ``data``, unless too much came for a head."""
        self._num_pending += len(data)
        super().data_received(data)
        limit = self.config.h11_max_incomplete_event_size
        if limit is not None and self._num_pending > limit:
            self._refuse(_TOO_LARGE)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._wait_for_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Raises ValueError, of which the parser makes a 400, when there are too many."""
        super().on_header(name, value)
        if len(self.headers) > self.config.h11_max_header_count:  # type: ignore[attr-defined]
            raise ValueError("too many headers")

    def on_headers_complete(self) -> None:
        self._num_pending = 0
        self._stop_waiting()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._num_pending = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._num_pending = 0
        super().on_message_complete()

    def handle_websocket_upgrade(self) -> None:
        """Hand the connection over, if a GET asks for it: none else opens a websocket (RFC 6455, 4.1).

        While an answer is written it can't be handed over, nor a refusal written: it is closed.
        """
        method = self.scope["method"]
        if self._unanswered() is not None:
            self.transport.close()
        elif method == "GET":
            super().handle_websocket_upgrade()
            self._refuse_wrong_websocket()
        else:
            self._refuse_websocket(
                f"a GET that opens a websocket, got {method}: leave its Upgrade header out"
            )

    def _refuse_wrong_websocket(self) -> None:
        """Say that the parser of websockets took nothing of the head, of which uvicorn does nothing."""
        parser = getattr(self.transport.get_protocol(), "conn", None)
        if (error := getattr(parser, "handshake_exc", None)) is not None:
            self._refuse_websocket(f"the head of a GET that opens a websocket, got {cut(str(error))}")

    def _refuse_websocket(self, expected: str) -> None:
        said = own_responses.error(f"expected {expected}", self.scope.get("path", ""))
        self._refuse(_BAD_REQUEST, json.dumps(said).encode())

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answered = cycle
        super()._start_asgi_task(cycle, app)

    def _unanswered(self) -> RequestResponseCycle | None:
        """The request whose answer is not whole; None if there is none."""
        cycle = self._answered
        return None if cycle is None or cycle.response_complete else cycle

    def _wait_for_head(self) -> None:
        self._stop_waiting()
        self._late = self.loop.call_later(self.seconds, self._is_late)

    def _stop_waiting(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _is_late(self) -> None:
        if self._unanswered() is not None:
            self._wait_for_head()  # nothing is read while an answer is written
        else:
            self._refuse(_TOO_SLOW)

    def _refuse(self, status: bytes, body: bytes = b"") -> None:
        if not self.transport.is_closing():
            head = b"HTTP/1.1 %b\r\nconnection: close\r\ncontent-length: %d\r\n" % (status, len(body))
            kind = b"content-type: application/json\r\n" if body else b""
            self.transport.write(head + kind + b"\r\n" + body)
            self.transport.close()
