from __future__ import annotations

import asyncio
import json

import pytest

from forkjoin_server.http.bodies import BodyMiddleware
from forkjoin_server.http.error_bodies import MAX_CHARS, MAX_GIVEN, ErrorBodies, bounded, texts
from forkjoin_server.routes import CHAT

LONG = "This model's maximum context length is 4096 tokens. However, your prompt contains at least 4097 input tokens, which exceeds this limit even without any output tokens. Please reduce the length of the input prompt."  # fmt: skip


def _error(**more):
    return json.dumps({"error": {"message": "m", "code": 400, "param": None} | more}).encode()


@pytest.mark.parametrize(
    "more",
    [
        {"message": f"The model `{'y' * 300}` does not exist."},
        {"message": f"expected one, got {'y' * 5_000_000}"},
        {"param": "y" * 300},
        {"detail": [{"input": {"a": "y" * 300}}]},
        {"y" * 300: "x"},
    ],
    ids=["name", "huge", "param", "nested", "key"],
)
def test_an_error_repeats_at_most_200_characters_of_its_request(more):
    body = bounded(_error(**more), lambda: "y" * 300)
    assert body.count(b"y") <= 205
    assert json.loads(body)["error"]["code"] == 400


@pytest.mark.parametrize("given", ["", "y" * 300, "max_tokens"])
def test_a_long_error_that_repeats_nothing_stays_as_it_is(given):
    assert json.loads(bounded(_error(message=LONG), lambda: given))["error"]["message"] == LONG


def test_a_request_that_takes_long_to_look_through_is_not_and_its_long_errors_are_cut():
    """Each was compared with it piece by piece on the event loop, where nobody else was served meanwhile."""
    huge = Unread("y" * (MAX_GIVEN + 1))
    message = json.loads(bounded(_error(message=LONG), lambda: huge))["error"]["message"]
    assert len(message) <= MAX_CHARS + 5
    assert message[:50] == LONG[:50]


class Unread(str):
    def __contains__(self, piece):
        raise AssertionError("it was looked through")


def test_an_error_that_is_no_json_is_cut():
    assert len(bounded(b"y" * 5000, lambda: "")) == 200


def _send(messages):
    sent = []

    async def send(message):
        sent.append(message)

    async def go():
        errors = ErrorBodies(send, lambda: "y" * 900)
        for message in messages:
            await errors.send(message)

    asyncio.run(go())
    return sent


def test_what_is_no_error_passes_piece_by_piece():
    messages = [
        {"type": "http.response.start", "status": 200, "headers": []},
        {"type": "http.response.body", "body": b"y" * 900, "more_body": True},
        {"type": "http.response.body", "body": b"y" * 900},
    ]
    assert _send(messages) == messages


def test_an_error_in_pieces_is_answered_whole_with_its_new_length():
    raw = _error(message="y" * 900)
    start, body = _send(
        [
            {
                "type": "http.response.start",
                "status": 422,
                "headers": [(b"Content-Length", b"950"), (b"a", b"b")],
            },
            {"type": "http.response.body", "body": raw[:10], "more_body": True},
            {"type": "http.response.body", "body": raw[10:]},
        ]
    )
    assert start["headers"] == [(b"a", b"b"), (b"content-length", str(len(body["body"])).encode())]
    assert json.loads(body["body"])["error"]["message"] == "y" * 197 + "..."


@pytest.mark.parametrize("path", [CHAT, "/tokenize"])
@pytest.mark.parametrize("raw", [json.dumps({"model": "é" * 900}).encode(), b"[" + b"y" * 900])
def test_what_vllm_repeats_is_cut_on_every_route(path, raw):
    async def app(scope, receive, send):
        text = (await receive())["body"].decode()
        given = json.loads(text)["model"] if text.startswith("{") else text
        body = _error(message=f"no such thing: {given}")
        await send({"type": "http.response.start", "status": 404, "headers": []})
        await send({"type": "http.response.body", "body": body})

    sent = []

    async def receive():
        return {"type": "http.request", "body": raw}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "headers": []}
    asyncio.run(BodyMiddleware(app)(scope, receive, send))
    assert len(json.loads(sent[1]["body"])["error"]["message"]) == 200


def test_all_texts_of_a_body_are_found_however_deep():
    deep = {"a": ["b"]}
    for _ in range(5000):
        deep = [deep]
    assert sorted(texts({"k": deep, "n": 1})) == ["a", "b", "k", "n"]
