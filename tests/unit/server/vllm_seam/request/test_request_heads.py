"""Heads of requests, by uvicorn's own server on a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from types import SimpleNamespace

import pytest
import uvicorn

from forkjoin_server.vllm_seam.request.request_heads import bound_heads

LIMIT, COUNT = 100_000, 20
BEGIN = b"POST /a HTTP/1.1\r\nhost: x\r\n"
END = b"content-length: 2\r\nconnection: close\r\n\r\nab"


async def _app(scope, receive, send):
    """Answers when it has read the body."""
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


@contextlib.asynccontextmanager
async def _serving(app, seconds):
    """The address of a server of ``app``."""
    config = uvicorn.Config(app, lifespan="off", log_config=None, http="httptools")
    config.h11_max_incomplete_event_size, config.h11_max_header_count = LIMIT, COUNT
    config.load()
    server = uvicorn.Server(config)
    bound_heads(SimpleNamespace(server=server), seconds)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        while not server.started:
            await asyncio.sleep(0.01)
        yield listening.getsockname()
        server.should_exit = True
        await serving


async def _answers(asked, seconds) -> list[bytes]:
    async with _serving(_app, seconds) as address:
        return [await _answer(address, data) for data in asked]


async def _answer(address, data) -> bytes:
    """To ``data``, behind which nothing comes, and nobody hangs up."""
    reader, writer = await asyncio.open_connection(*address)
    writer.write(data)
    try:
        return await reader.read()
    except ConnectionResetError:
        return b"reset"
    finally:
        writer.close()


def ask(*data, seconds=60):
    return asyncio.run(_answers(data, seconds))


@pytest.mark.parametrize(
    "data",
    [
        BEGIN + b"a: " + b"a" * 3 * LIMIT,
        b"POST /" + b"a" * 3 * LIMIT,
        BEGIN + b"transfer-encoding: chunked\r\n\r\n5;" + b"a" * 3 * LIMIT,
        BEGIN + b"transfer-encoding: chunked\r\n\r\n0\r\na: " + b"a" * 3 * LIMIT,
    ],
    ids=["header", "path", "chunk", "trailer"],
)
def test_what_does_not_end_is_refused_when_it_is_too_large(data):
    (answer,) = ask(data)
    assert answer == b"reset" or b"431 Request Header Fields Too Large" in answer


def test_too_many_headers_are_refused():
    (answer,) = ask(BEGIN + b"a: b\r\n" * COUNT + END)
    assert answer.startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("data", [b"", b"POST /a HT", BEGIN + b"a: b"], ids=["nothing", "line", "header"])
def test_a_head_that_is_not_whole_in_time_is_refused(data):
    (answer,) = ask(data, seconds=0.2)
    assert answer.startswith(b"HTTP/1.1 408 ")


def test_others_are_answered_as_before():
    large = BEGIN + b"a: " + b"a" * (LIMIT // 2) + b"\r\n" + END
    body = b"a" * 3 * LIMIT
    much = BEGIN + b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    answers = ask(large, much, BEGIN + b"content-length: 1\r\n\r\nz" + BEGIN + END)
    assert [a.count(b"HTTP/1.1 200 OK") for a in answers] == [1, 1, 2]


UPGRADE = b"connection: Upgrade\r\nupgrade: websocket\r\n"


@pytest.mark.parametrize("method", [b"POST", b"PUT", b"DELETE"])
@pytest.mark.parametrize(
    "keys", [b"", b"sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\nsec-websocket-version: 13\r\n"]
)
def test_a_websocket_that_no_get_opens_is_refused_at_once(method, keys):
    """The parser of websockets waited ten seconds for a GET."""
    (answer,) = ask(method + b" /a HTTP/1.1\r\nhost: x\r\n" + UPGRADE + keys + b"content-length: 2\r\n\r\nab")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"expected a GET that opens a websocket, got " + method in answer


def test_another_protocol_than_websockets_is_not_changed_to_and_the_request_answered():
    (answer,) = ask(BEGIN + b"connection: Upgrade\r\nupgrade: h2c\r\n" + END)
    assert answer.startswith(b"HTTP/1.1 200 ")


def test_a_get_that_asks_for_a_websocket_is_answered():
    (answer,) = ask(b"GET /a HTTP/1.1\r\nhost: x\r\n" + UPGRADE + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 4")


KEY = b"sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\nsec-websocket-version: 13\r\n"


@pytest.mark.parametrize(
    "head",
    [
        b"content-length: 2\r\n\r\nab",
        b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"a: " + b"b" * 10_000 + b"\r\n\r\n",
        b"".join(b"a%d: b\r\n" % i for i in range(140)) + b"\r\n",
    ],
    ids=["body", "chunks", "long", "many"],
)
def test_a_websocket_whose_head_its_parser_does_not_take_is_refused(head, monkeypatch):
    """Its connection stayed open, and silent, for ever."""
    monkeypatch.setattr("tests.unit.server.vllm_seam.request.test_request_heads.COUNT", 200)
    (answer,) = ask(b"GET /a HTTP/1.1\r\nhost: x\r\n" + UPGRADE + KEY + head)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"expected the head of a GET that opens a websocket, got" in answer


ASK = BEGIN + b"content-length: 0\r\n\r\n"
OPEN = b"GET /b HTTP/1.1\r\nhost: x\r\n" + UPGRADE + b"\r\n"


@pytest.mark.parametrize(
    ("behind", "hangs_up"),
    [(b"", True), (ASK, True), (OPEN, False), (ASK + OPEN, False)],
    ids=["nothing", "request", "websocket", "both"],
)
def test_a_request_hears_that_its_client_hung_up_whatever_came_behind_it(behind, hangs_up):
    """It was another that heard it: an answer was made for nobody, and written to a closed connection.

    A websocket behind it ends the connection.
    """
    heard = []

    async def app(scope, receive, send):
        heard.append(scope["path"])
        while (message := await receive())["type"] == "http.request":
            asked.set()
        heard.append(message["type"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        done.set()

    async def ask_and_leave():
        async with _serving(app, 60) as address, asyncio.timeout(120):
            reader, writer = await asyncio.open_connection(*address)
            writer.write(ASK + behind)
            if hangs_up:
                await asked.wait()
                writer.close()
            await done.wait()
            answer = await reader.read()
            writer.close()
            return answer

    asked, done = asyncio.Event(), asyncio.Event()
    assert asyncio.run(ask_and_leave()) == b""
    assert heard == ["/a", "http.disconnect"]
