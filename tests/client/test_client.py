"""The clients on a stand-in for a server: each answer is given by hand."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import get_type_hints

import httpx
import pytest

from forkjoin import (
    AsyncClient,
    BadRequest,
    Client,
    Conflict,
    Finished,
    ForkJoin,
    ForkJoinError,
    NotConnected,
    Overloaded,
    Retries,
    ServerFailed,
    StreamBroken,
    Unreadable,
    WrongKey,
)
from forkjoin.options import Branch
from forkjoin_scheduler.request.options import ExplicitBranch, RequestOptions

AT_ONCE = Retries(base_s=0)
WHOLE = {"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}]}
CHUNK = {"choices": [{"index": 0, "delta": {"content": "hi"}, "finish_reason": "stop"}]}
STREAM = f"data: {json.dumps(CHUNK)}\n\ndata: [DONE]\n\n"


class StandIn:
    """Answers each request by the next of ``answers``, an error raised; what was asked is in ``requests``."""

    def __init__(self, *answers):
        self.answers, self.requests = list(answers), []

    def __call__(self, request):
        self.requests.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def client(self, **more):
        http = httpx.Client(transport=httpx.MockTransport(self))
        return Client("http://s/v1", http=http, **({"retries": AT_ONCE} | more))

    def ask(self, is_async, **more):
        """An answer of either client to "x"."""
        return self.called(is_async, "ask", "x", **more)

    def called(self, is_async, method, *args, asked=None, **more):
        """What ``method`` of either client returns; ``asked``: its keyword arguments."""
        asked = asked or {}
        if not is_async:
            return getattr(self.client(**more), method)(*args, **asked)

        async def run():
            http = httpx.AsyncClient(transport=httpx.MockTransport(self))
            client = AsyncClient("http://s", http=http, **({"retries": AT_ONCE} | more))
            return await getattr(client, method)(*args, **asked)

        return asyncio.run(run())


both = pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])


@both
def test_a_question_is_one_message_and_asks_for_the_threads(is_async, monkeypatch):
    monkeypatch.setenv("FORKJOIN_CLIENT_API_KEY", "k")
    server = StandIn(httpx.Response(200, json=WHOLE))
    assert server.ask(is_async).content == "hi"
    (request,) = server.requests
    assert str(request.url) == "http://s/v1/chat/completions"
    assert request.headers["authorization"] == "Bearer k"
    assert json.loads(request.content) == {
        "messages": [{"role": "user", "content": "x"}],
        "forkjoin": {"include_threads": True},
    }


@both
def test_a_group_is_a_session_for_routers(is_async):
    server = StandIn(httpx.Response(200, json=WHOLE))
    server.called(is_async, "ask", "x", asked={"forkjoin": {"group_id": "a group/1"}})
    (request,) = server.requests
    assert request.headers["x-session-id"] == "a%20group%2F1"
    assert json.loads(request.content)["forkjoin"]["group_id"] == "a group/1"


@both
@pytest.mark.parametrize("method", ["cancel_thread", "release"])
def test_what_is_asked_about_an_answer_goes_to_its_replica(is_async, method):
    server = StandIn(httpx.Response(200, json={}), httpx.Response(200, json={}))
    server.called(is_async, method, "x", asked={"group_id": "a group/1"})
    server.called(is_async, method, "x")
    assert [r.headers.get("x-session-id") for r in server.requests] == ["a%20group%2F1", None]


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_a_session_of_the_users_own_stays(is_async):
    server, headers = StandIn(*[httpx.Response(200, json=WHOLE)] * 2), {"X-Session-ID": "mine"}
    forkjoin = {"group_id": "g"}
    if is_async:

        async def run():
            http = httpx.AsyncClient(transport=httpx.MockTransport(server), headers=headers)
            client = AsyncClient("http://s", http=http)
            await client.ask("x", forkjoin=forkjoin)
            await client.release("x", group_id="g")

        asyncio.run(run())
    else:
        client = Client("http://s", http=httpx.Client(transport=httpx.MockTransport(server), headers=headers))
        client.ask("x", forkjoin=forkjoin)
        client.release("x", group_id="g")
    assert [r.headers.get_list("x-session-id") for r in server.requests] == [["mine"]] * 2


@both
def test_a_thread_is_cancelled_by_its_id(is_async):
    server = StandIn(httpx.Response(503), httpx.Response(202, json={"status": "cancelling"}))
    assert server.called(is_async, "cancel_thread", "th_1/x", api_key="k") is None
    assert [r.url.raw_path for r in server.requests] == [b"/v1/forkjoin/threads/th_1%2Fx/cancel"] * 2
    assert {(r.method, r.headers["authorization"], r.content) for r in server.requests} == {
        ("POST", "Bearer k", b"")
    }


@both
def test_a_kept_answer_is_released_by_its_id(is_async):
    server = StandIn(httpx.Response(200, json={"status": "released"}))
    assert server.called(is_async, "release", "chatcmpl-1/x") is None
    asked = server.requests[0]
    assert (asked.method, asked.url.raw_path) == ("POST", b"/v1/forkjoin/kept/chatcmpl-1%2Fx/release")


@both
@pytest.mark.parametrize(
    "first",
    [{"status_code": 503}, {"status_code": 429, "headers": {"retry-after": "0"}}, httpx.ConnectError("no")],
    ids=["503", "429", "lost"],
)
def test_a_request_that_was_not_begun_is_asked_again(is_async, first):
    first = first if isinstance(first, Exception) else httpx.Response(text="", **first)
    server = StandIn(first, httpx.Response(200, json=WHOLE))
    assert server.ask(is_async).finish_reason == "stop"
    assert len(server.requests) == 2


@both
@pytest.mark.parametrize(
    ("status", "kind", "message"),
    [
        (400, BadRequest, "expected an answer, got 400: said: change the request"),
        (409, Conflict, "got 409: said"),
        (401, WrongKey, "FORKJOIN_CLIENT_API_KEY"),
        (429, Overloaded, "ask again in 61 s"),
        (500, ServerFailed, "the server's log has more"),
    ],
)
def test_an_error_says_what_was_seen_and_what_to_do(is_async, status, kind, message):
    body = {"error": {"message": "said", "type": "t", "code": status}}
    server = StandIn(
        httpx.Response(status, json=body, headers={"retry-after": "61"} if status == 429 else {})
    )
    with pytest.raises(kind, match=message) as caught:
        server.ask(is_async)
    assert caught.value.status == status
    assert len(server.requests) == 1


@both
def test_nobody_at_the_address_is_said_after_the_last_attempt(is_async):
    server = StandIn(*[httpx.ConnectError("refused")] * 3)
    with pytest.raises(
        NotConnected, match=r"an answer of http://s, got ConnectError: refused: check the address"
    ):
        server.ask(is_async)
    assert server.answers == []


@both
def test_a_server_that_takes_too_long_is_not_asked_again(is_async):
    server = StandIn(httpx.ReadTimeout("slow"))
    with pytest.raises(NotConnected, match="ReadTimeout"):
        server.ask(is_async)


@both
def test_an_error_without_our_shape_is_repeated_in_part(is_async):
    server = StandIn(httpx.Response(404, text="<html>" + "x" * 900))
    with pytest.raises(BadRequest, match=r"got 404: <html>x+: check the address") as caught:
        server.ask(is_async)
    assert len(str(caught.value)) < 300


@both
@pytest.mark.parametrize(
    "body",
    [
        "<html>welcome</html>",
        "[" * 100_000,
        "[]",
        "{}",
        '{"choices": []}',
        '{"choices": [{"message": 3}]}',
        '{"choices": [{"message": {"content": 3}}]}',
        '{"data": [{"name": "m"}]}',
        '{"data": [3]}',
        b"\xff",
        b"",
    ],
    ids=range(11),
)
def test_a_success_that_is_no_answer_is_said(is_async, body):
    for method, args, expected in [("ask", ["x"], "a chat completion"), ("models", [], "a list of models")]:
        server = StandIn(httpx.Response(200, content=body))
        with pytest.raises(Unreadable, match=f"expected {expected} of http://s, got .*: check the address"):
            server.called(is_async, method, *args)


@both
def test_an_answer_that_can_not_be_decompressed_is_said(is_async):
    def answer():
        return httpx.Response(200, headers={"content-encoding": "gzip"}, stream=httpx.ByteStream(b"no gzip"))

    for method, args in [("ask", ["x"]), ("models", [])]:
        with pytest.raises(Unreadable, match="can't be decompressed"):
            StandIn(answer()).called(is_async, method, *args)
    with pytest.raises(StreamBroken, match="DecodingError"), StandIn(answer()).client().stream("x") as events:
        list(events)


@both
def test_the_models_are_named(is_async):
    server = StandIn(httpx.Response(200, json={"object": "list", "data": [{"id": "m", "object": "model"}]}))
    assert server.called(is_async, "models") == ["m"]


@both
@pytest.mark.parametrize("question", ["\ud800", [{"role": "user", "content": "x", "weight": float("nan")}]])
def test_a_question_that_no_request_can_hold_is_said(is_async, question):
    with pytest.raises(ForkJoinError, match="expected a request that can be sent"):
        StandIn().called(is_async, "ask", question)


@pytest.mark.parametrize("key", ["schlüssel", "key\n", "a\x00b", " key"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_repeated(key):
    with pytest.raises(ForkJoinError, match="api_key: expected printable ASCII") as caught:
        Client("http://s", api_key=key)
    assert key not in str(caught.value)


def test_a_stream_asks_for_its_usage_and_ends_with_the_answer():
    server = StandIn(httpx.Response(200, text=STREAM))
    with server.client().stream(
        [{"role": "user", "content": "x"}], model="m", forkjoin={"max_forks": 2}
    ) as events:
        *_, last = events
    assert last == Finished(answer=events.answer)
    asked = json.loads(server.requests[0].content)
    assert asked["stream_options"] == {"include_usage": True}
    assert asked["forkjoin"] == {"include_threads": True, "max_forks": 2}
    assert (asked["stream"], asked["model"]) == (True, "m")


def test_stream_options_may_be_null_as_the_api_has_them():
    server = StandIn(httpx.Response(200, text=STREAM))
    with server.client().stream("x", stream_options=None) as events:
        assert [*events]
    assert json.loads(server.requests[0].content)["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (STREAM.replace("data: [DONE]\n\n", ""), "got its end: the connection was lost"),
        ("data: oops\n\n", "expected JSON in the stream, got 'oops'"),
        ('data: {"error": {"message": "failed"}}\n\n', "an error of the server's: failed"),
        (b"data: \xff\n\n", "expected UTF-8 in the stream"),
        ("data: " + "[" * 100_000 + "\n\n", "expected JSON in the stream"),
    ],
    ids=["cut", "no_json", "error", "no_utf_8", "too_deep"],
)
def test_a_stream_that_has_begun_is_not_asked_again(text, message):
    server = StandIn(httpx.Response(200, content=text))
    with pytest.raises(StreamBroken, match=message), server.client().stream("x") as events:
        list(events)
    assert len(server.requests) == 1


@pytest.mark.parametrize("address", ["localhost:8000", "ftp://s", "http://", "s", "http://s/\udcff"])
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(ForkJoinError, match="base_url: expected http://host:port"):
        Client(address)


def test_the_environment_names_the_server_if_no_argument_does(monkeypatch):
    monkeypatch.setenv("FORKJOIN_CLIENT_URL", "http://elsewhere:1/v1/")
    assert Client().address == "http://elsewhere:1"
    assert Client("http://here").address == "http://here"


def test_the_options_are_those_that_the_server_takes():
    assert get_type_hints(ForkJoin).keys() == RequestOptions.model_fields.keys()
    assert get_type_hints(Branch).keys() == ExplicitBranch.model_fields.keys()


@pytest.mark.parametrize(
    ("name", "of_the_server"), [("ForkJoinOptions", RequestOptions), ("Branch", ExplicitBranch)]
)
def test_the_options_in_typescript_are_those_that_the_server_takes(name, of_the_server):
    wire = (Path(__file__).parents[2] / "client-ts/src/wire.ts").read_text()
    interface = re.search(rf"^export interface {name} {{\n(.*?)^}}", wire, flags=re.M | re.S)
    assert interface is not None
    assert set(re.findall(r"^  (\w+)\?:", interface[1], flags=re.M)) == of_the_server.model_fields.keys()


# ---- on a real socket ----------------------------------------------------------------------


def test_so_many_answers_run_at_once_as_are_asked_for():
    """The server answers when all have asked."""
    num, asked = 150, []

    async def run():
        all_have = asyncio.Event()

        async def answer(reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            asked.append(writer)
            if len(asked) == num:
                all_have.set()
            await all_have.wait()
            body = json.dumps(WHOLE).encode()
            head = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
            writer.write(head + body)
            await writer.drain()
            writer.close()
            await writer.wait_closed()

        server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=num)
        host, port = server.sockets[0].getsockname()
        async with server, AsyncClient(f"http://{host}:{port}") as client:
            answers = asyncio.gather(*(client.ask("x") for _ in range(num)))
            return await asyncio.wait_for(answers, 30)

    assert [answer.content for answer in asyncio.run(run())] == ["hi"] * num


@pytest.fixture
def stalled():
    """A server that writes one chunk and then nothing; its address, and an event set once its client is gone."""
    gone = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.end_headers()
            open_chunk = {"choices": [{"index": 0, "delta": {"content": "hi"}}]}
            self.wfile.write(f"data: {json.dumps(open_chunk)}\n\n".encode())
            self.connection.recv(1)  # until it hangs up
            gone.set()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", gone
    server.shutdown()
    server.server_close()
    thread.join()


def test_cancel_from_another_thread_ends_the_loop_and_the_connection(stalled):
    address, gone = stalled
    with Client(address) as client, client.stream("x") as events:
        assert next(events).text == "hi"
        canceller = threading.Thread(target=events.cancel)
        canceller.start()
        assert list(events) == []
        canceller.join()
        assert gone.wait(60)
    assert events.answer.finish_reason is None


def test_leaving_the_block_closes_the_connection(stalled):
    address, gone = stalled
    with Client(address) as client:
        with client.stream("x") as events:
            next(events)
        assert gone.wait(60)


def test_a_cancelled_task_closes_the_connection(stalled):
    address, gone = stalled

    async def run():
        began = asyncio.Event()

        async def read():
            async with AsyncClient(address) as client, await client.stream("x") as events:
                async for _ in events:
                    began.set()

        task = asyncio.create_task(read())
        await began.wait()
        task.cancel()
        await asyncio.wait([task])
        return task.cancelled()

    assert asyncio.run(run())
    assert gone.wait(60)
