"""One request on a stand-in for a server: each answer is given by hand, and no second passes."""

from __future__ import annotations

import asyncio
import itertools
import json

import httpx
import pytest

from forkjoin import NotConnected, WrongKey
from forkjoin.asking import Server
from forkjoin.batch.asking import LOST, MAX_LOST, Asker, fault_of
from forkjoin.batch.lines import Line

LINE = Line("a", "/v1/completions", b'{"prompt": "x"}')
BODY = {"id": "cmpl-1", "choices": []}
OK = httpx.Response(200, json=BODY)
RESET = httpx.ReadError("reset")
ABORTED = {"id": "cmpl-2", "choices": [{"finish_reason": "stop"}, {"finish_reason": "abort"}]}


class StandIn:
    """Answers by the next of ``answers``, an error raised; ``waits`` are those between, on its own clock."""

    def __init__(self, *answers, patience_s=600.0):
        self.answers, self.requests, self.waits, self.now_s = list(answers), [], [], 0.0
        self.patience_s = patience_s

    def _answer(self, request):
        self.requests.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def _sleep(self, seconds):
        self.waits.append(seconds)
        self.now_s += seconds

    async def _rows(self, number, line=LINE):
        async with httpx.AsyncClient(transport=httpx.MockTransport(self._answer)) as http:
            asker = Asker(
                http, Server.named("http://s/v1", "k"), self.patience_s,
                sleep=self._sleep, clock=lambda: self.now_s,
            )  # fmt: skip
            return [await asker.row(line) for _ in range(number)]

    def row(self):
        return self.rows(1)[0]

    def rows(self, number):
        return asyncio.run(self._rows(number))


def _status(status, **headers):
    return httpx.Response(status, json={"error": {"message": "said"}}, headers=headers)


def test_an_answer_is_a_row_of_openais_shape():
    server = StandIn(OK)
    assert server.row() == {
        "id": LINE.id,
        "custom_id": "a",
        "response": {"status_code": 200, "request_id": "cmpl-1", "body": BODY},
        "error": None,
    }
    (request,) = server.requests
    assert (request.method, str(request.url)) == ("POST", "http://s/v1/completions")
    assert request.headers["authorization"] == "Bearer k"
    assert request.headers["content-type"] == "application/json"
    assert request.content == LINE.body


def test_a_group_is_a_session_for_routers():
    server = StandIn(OK)
    line = Line("a", "/v1/completions", b'{"prompt": "x", "forkjoin": {"group_id": "g"}}')
    asyncio.run(server._rows(1, line))
    assert server.requests[0].headers["x-session-id"] == "g"


@pytest.mark.parametrize("group_id", [b'"\\ud800"', b"7", b"null"])
def test_a_group_that_no_header_can_hold_is_the_servers_to_refuse(group_id):
    server = StandIn(_status(400))
    line = Line("a", "/v1/completions", b'{"prompt": "x", "forkjoin": {"group_id": %s}}' % group_id)
    (row,) = asyncio.run(server._rows(1, line))
    assert row["response"]["status_code"] == 400
    assert "x-session-id" not in server.requests[0].headers


@pytest.mark.parametrize("status", [400, 404, 413, 422])
def test_a_request_that_is_wrong_has_the_servers_error_as_its_response(status):
    row = StandIn(_status(status)).row()
    assert row["response"]["status_code"] == status
    assert row["response"]["body"] == {"error": {"message": "said"}}
    assert row["error"] is None
    assert fault_of(row) == f"{status}: said"


@pytest.mark.parametrize(
    "first",
    [
        httpx.ConnectError("refused"),
        httpx.ConnectTimeout("slow"),
        RESET,
        httpx.RemoteProtocolError("hung up"),
        *map(_status, (408, 429, 500, 502, 503, 504)),
        httpx.Response(502, text="<html>"),
        httpx.Response(200, text="half of a J"),
        httpx.Response(200, json=ABORTED),
        httpx.Response(200, json={"object": "response", "status": "cancelled", "output": []}),
    ],
    ids=lambda first: str(first),
)
def test_a_request_without_an_answer_is_asked_again(first):
    server = StandIn(first, OK)
    assert server.row()["response"]["status_code"] == 200
    assert len(server.requests) == 2
    assert 0.25 <= server.waits[0] <= 0.5


def test_it_is_asked_again_when_the_server_says_and_otherwise_ever_more_seldom():
    server = StandIn(_status(503, **{"retry-after": "7"}), *[httpx.ConnectError("refused")] * 20, OK)
    server.row()
    first, *others = server.waits
    assert 7 <= first <= 7.5
    assert all(0.5 <= wait <= 8 for wait in others)
    assert all(4 <= wait <= 8 for wait in others[4:])


@pytest.mark.parametrize("begun", [RESET, _status(500)], ids=["lost", "failed"])
def test_what_may_have_ended_the_server_is_asked_a_few_times_and_a_refusal_does_not_count(begun):
    server = StandIn(*[httpx.ConnectError("refused"), _status(503), begun] * MAX_LOST)
    row = server.row()
    assert len(server.requests) == 3 * MAX_LOST
    if begun is RESET:
        assert row["response"] is None
        assert row["error"] == {
            "code": LOST,
            "message": "ReadError: reset, 5 times: the server's log has more",
        }
    else:
        assert (row["response"]["status_code"], row["error"]) == (500, None)


def test_an_answer_that_the_server_aborts_each_time_is_none():
    row = StandIn(*[httpx.Response(200, json=ABORTED)] * MAX_LOST).row()
    assert row["response"] is None
    assert fault_of(row).startswith("aborted: expected a whole answer")


def test_no_server_puts_a_request_off_for_longer_than_there_is_patience():
    server = StandIn(_status(503, **{"retry-after": "1e9"}), OK, patience_s=60)
    server.row()
    assert 60 <= server.waits[0] <= 60.5


def test_what_is_no_json_is_no_answer():
    row = StandIn(*[httpx.Response(200, text="<html>")] * MAX_LOST).row()
    assert row["response"] is None
    assert row["error"]["code"] == "unreadable"
    assert "expected JSON, got 200: '<html>': check the address" in fault_of(row)


def test_it_gives_up_when_nobody_has_answered_for_too_long():
    server = StandIn(OK, *[httpx.ConnectError("refused")] * 100, patience_s=60)
    with pytest.raises(NotConnected, match=r"got none for \d+ s: ConnectError: refused: check the address"):
        server.rows(2)
    assert 60 < server.now_s < 70
    assert len(server.requests) > 8


async def _beside_one_that_waits(http, address, is_waiting):
    """Asks with a patience of 10 s, while another request waits. Returns the seconds and both statuses."""
    now_s = 0.0

    async def sleep(seconds):
        nonlocal now_s
        now_s += seconds
        await asyncio.sleep(0)

    asker = Asker(http, Server.named(address, None), 10, sleep=sleep, clock=lambda: now_s)
    other = asyncio.create_task(asker.row(Line("slow", "/score", b"{}")))
    await is_waiting.wait()
    try:
        rows = [await asker.row(LINE), await other]
    finally:
        other.cancel()
    return now_s, [row["response"]["status_code"] for row in rows]


def test_it_does_not_give_up_while_another_request_waits_for_its_answer():
    """The server is there then, and busy. A real one: what counts is that the request has a connection."""

    async def run():
        is_waiting, is_over, num_refused = asyncio.Event(), asyncio.Event(), 0

        async def answer(reader, writer):
            nonlocal num_refused
            head, status = await reader.readuntil(b"\r\n\r\n"), b"200 OK"
            is_slow = head.startswith(b"POST /score")
            await reader.readexactly(len(b"{}" if is_slow else LINE.body))
            if is_slow:
                is_waiting.set()
                await is_over.wait()
            elif num_refused < 50:
                num_refused, status = num_refused + 1, b"503 Busy"
            else:
                is_over.set()
            writer.write(b"HTTP/1.1 %s\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}" % status)
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server, httpx.AsyncClient(trust_env=False) as http:
            return await _beside_one_that_waits(http, f"http://127.0.0.1:{port}", is_waiting)

    waited_s, statuses = asyncio.run(run())
    assert waited_s > 100
    assert statuses == [200, 200]


def test_it_gives_up_while_another_request_still_connects():
    """A host that drops packets lets nobody connect, and refuses nobody at once."""

    async def run():
        is_connecting = asyncio.Event()

        async def connect(request):
            if request.url.path == "/score":
                is_connecting.set()
                await asyncio.Event().wait()
            if next(tries) > 100:
                pytest.fail("it does not give up")
            raise httpx.ConnectTimeout("")

        tries = itertools.count(1)
        async with httpx.AsyncClient(transport=httpx.MockTransport(connect)) as http:
            with pytest.raises(NotConnected, match="got none for"):
                await _beside_one_that_waits(http, "http://s", is_connecting)

    asyncio.run(run())


@pytest.mark.parametrize("status", [401, 403])
def test_a_key_that_is_none_ends_all(status):
    with pytest.raises(WrongKey, match=r"FORKJOIN_CLIENT_API_KEY|give a key that may do this"):
        StandIn(_status(status)).row()


def test_a_row_says_how_the_server_names_the_request():
    assert StandIn(httpx.Response(200, json=BODY, headers={"x-request-id": "7"})).row()["response"][
        "request_id"
    ] == "7"  # fmt: skip
    assert json.dumps(StandIn(httpx.Response(200, json={})).row()["response"]["request_id"]) == f'"{LINE.id}"'
