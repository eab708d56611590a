"""The clients on a stand-in for a server: each answer is given by hand."""

from __future__ import annotations

import asyncio
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import get_type_hints

import httpx
import pytest

from forkjoin import (
    AsyncClient,
    BadRequest,
    Client,
    Finished,
    ForkJoin,
    ForkJoinError,
    NotConnected,
    Overloaded,
    Retries,
    ServerFailed,
    StreamBroken,
    WrongKey,
)
from forkjoin.options import Branch
from forkjoin_scheduler.options import ExplicitBranch, RequestOptions

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
        if not is_async:
            return self.client(**more).ask("x")

        async def run():
            http = httpx.AsyncClient(transport=httpx.MockTransport(self))
            return await AsyncClient("http://s", http=http, **({"retries": AT_ONCE} | more)).ask("x")

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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (STREAM.replace("data: [DONE]\n\n", ""), "got its end: the connection was lost"),
        ("data: oops\n\n", "expected JSON in the stream, got 'oops'"),
        ('data: {"error": {"message": "failed"}}\n\n', "an error of the server's: failed"),
    ],
    ids=["cut", "no_json", "error"],
)
def test_a_stream_that_has_begun_is_not_asked_again(text, message):
    server = StandIn(httpx.Response(200, text=text))
    with pytest.raises(StreamBroken, match=message), server.client().stream("x") as events:
        list(events)
    assert len(server.requests) == 1


@pytest.mark.parametrize("address", ["localhost:8000", "ftp://s", "http://", "s"])
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


# ---- on a real socket ----------------------------------------------------------------------


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
