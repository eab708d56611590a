from __future__ import annotations

import asyncio
import contextlib
import json

import pytest

from forkjoin_server.http.middleware import ForkJoinMiddleware
from forkjoin_server.operate.lifecycle import Cut
from forkjoin_server.routes import CHAT, MESSAGES, RESPONSES


def _cut_after(*messages, path=CHAT, method="POST"):
    """What a client is sent of an answer that is cut when it has come to the end of ``messages``."""
    sent = []

    async def receive():
        return {"type": "http.request", "body": b'{"stream": true}', "more_body": False}

    async def send(message):
        sent.append(message)

    async def app(scope, receive, send):
        for message in messages:
            await send(message)
        raise Cut

    @contextlib.asynccontextmanager
    async def answering():
        yield

    middleware = ForkJoinMiddleware(app)
    middleware.lifecycle.answering = answering
    scope = {"type": "http", "method": method, "path": path, "headers": []}
    asyncio.run(middleware(scope, receive, send))
    return sent


def _begun(kind: bytes) -> dict:
    return {"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]}


STREAM = _begun(b"text/event-stream; charset=utf-8")
CHUNK = {"type": "http.response.body", "body": b'data: {"choices": []}\n\n', "more_body": True}


@pytest.mark.parametrize("before", [(), (_begun(b"application/json"),)], ids=["nothing", "start_held_back"])
def test_what_has_not_begun_is_a_503_that_says_when_to_come_again(before):
    start, body = _cut_after(*before)
    assert start["status"] == 503
    assert (b"retry-after", b"1") in start["headers"]
    assert "before this answer was over" in json.loads(body["body"])["error"]["message"]


def test_a_stream_ends_with_an_error_as_vllm_writes_one():
    *_, last = _cut_after(STREAM, CHUNK)
    error, done, end = last["body"].split(b"\n\n")
    assert json.loads(error.removeprefix(b"data: "))["error"]["code"] == 503
    assert (done, end, last.get("more_body", False)) == (b"data: [DONE]", b"", False)


@pytest.mark.parametrize(
    ("method", "path"), [("POST", RESPONSES), ("POST", MESSAGES), ("GET", f"{RESPONSES}/resp_1")]
)
def test_a_stream_with_named_events_ends_with_one_named_error(method, path):
    *_, last = _cut_after(STREAM, CHUNK, path=path, method=method)
    name, data = last["body"].decode().strip().split("\n")
    assert name == "event: error"
    event = json.loads(data.removeprefix("data: "))
    assert event["type"] == "error"
    assert "before this answer was over" in event["error"]["message"]


def test_a_stream_that_is_over_gets_nothing_more():
    over = {"type": "http.response.body", "body": b"", "more_body": False}
    assert [m.get("body") for m in _cut_after(STREAM, CHUNK, over)] == [None, CHUNK["body"], b""]
