from __future__ import annotations

import asyncio
import json

import pytest
from fastapi import FastAPI, Request

from forkjoin_scheduler.publish.events import FamilyEnded, Forked, NewThread
from forkjoin_scheduler.publish.feed import FEEDS, new_key
from forkjoin_scheduler.request.given import OPEN, Given, Part, Stretch
from forkjoin_scheduler.request.options import CompiledOptions
from forkjoin_server.http import generating
from forkjoin_server.http.middleware import ForkJoinMiddleware
from forkjoin_server.routes import CHAT, COMPLETIONS, INVOCATIONS, MESSAGES, PATHS, RESPONSES

#: As the engine publishes them to all observers, metrics too.
FORKED = Forked(parent_index=-1, num_duplicates=0, num_later=0, shared_tokens=3, threads=[NewThread(index=0, number="1", title="x"), NewThread(index=1, number="2", title="")])  # fmt: skip
ENDED = FamilyEnded(family="r", num_threads=2, critical_path_tokens=5, total_tokens=8, surplus_tokens=3)  # fmt: skip


def _ask(app, body, path=CHAT, headers=(), **scope):
    """What a client of the middleware around ``app`` is sent for ``body`` (bytes or JSON)."""
    sent = []
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    parts = [(data[:5], True), (data[5:], False)]

    async def receive():
        part, more = parts.pop(0)
        return {"type": "http.request", "body": part, "more_body": more}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "headers": list(headers), **scope}
    asyncio.run(ForkJoinMiddleware(app)(scope, receive, send))
    return sent


def _recorder(seen, answer=b"{}", events=()):
    """A stand-in for vLLM: notes what it is asked, publishes ``events``, answers ``answer``."""

    async def app(scope, receive, send):
        headers = dict(scope["headers"])
        seen.update(headers=headers, body=(await receive())["body"])
        FEEDS.publish(f"chatcmpl-{headers.get(b'x-request-id', b'').decode()}", list(events), 0)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": answer})

    return app


@pytest.mark.parametrize("path", PATHS)
def test_an_unknown_field_is_a_400_that_vllm_never_sees(path):
    seen = {}
    start, body = _ask(_recorder(seen), {"forkjoin": {"bogus": 1}}, path)
    assert start["status"] == 400
    assert "forkjoin.bogus" in json.loads(body["body"])["error"]["message"]
    assert seen == {}


def test_a_400_has_the_shape_of_its_route():
    answers = [_ask(_recorder({}), {"forkjoin": 3}, path)[1]["body"] for path in (CHAT, MESSAGES)]
    openai, anthropic = map(json.loads, answers)
    assert openai["error"]["code"] == 400
    assert (anthropic["type"], anthropic["error"]["type"]) == ("error", "invalid_request_error")


def test_a_body_that_is_no_json_goes_to_vllm_as_it_came():
    seen = {}
    _ask(_recorder(seen), b"{")
    assert seen["body"] == b"{"


@pytest.mark.parametrize("path", [*PATHS, INVOCATIONS, "/tokenize"])
@pytest.mark.parametrize("raw", [b"null", b"3", b"[1]"])
def test_a_body_that_is_no_object_is_a_400_on_every_route(raw, path):
    seen = {}
    start, body = _ask(_recorder(seen), raw, path)
    assert start["status"] == 400
    assert "expected a JSON object, got" in json.loads(body["body"])["error"]["message"]
    assert seen == {}


@pytest.mark.parametrize("raw", [b"\xff\xfe\xfa", b"[" * 100_000, b"9" * 5000])
@pytest.mark.parametrize("path", [*PATHS, INVOCATIONS, "/tokenize"])
def test_a_body_that_nobody_can_read_is_a_400_in_the_shape_of_its_route(raw, path):
    seen = {}
    start, body = _ask(_recorder(seen), raw, path)
    assert start["status"] == 400
    assert "the body: expected JSON" in json.loads(body["body"])["error"]["message"]
    assert seen == {}


@pytest.mark.parametrize(
    ("given", "headers"),
    [({"request_id": "a" * 257}, ()), ({"request_id": "a\nb"}, ()), ({}, [(b"x-request-id", b"a" * 257)])],
    ids=["long", "not_printable", "header"],
)
@pytest.mark.parametrize("path", PATHS)
def test_an_id_that_is_too_long_is_a_400_that_vllm_never_sees(path, given, headers):
    seen = {}
    start, body = _ask(_recorder(seen), given, path, headers)
    assert start["status"] == 400
    assert "the request's id: expected" in json.loads(body["body"])["error"]["message"]
    assert seen == {}


def test_nothing_is_read_of_a_request_that_other_middleware_refuses():
    """As vLLM builds it: routes, its own middleware, then what ``--middleware`` names."""
    app, read = FastAPI(), []

    class Refuses:
        def __init__(self, app):
            self.app = app

        async def __call__(self, scope, receive, send):
            if dict(scope["headers"]).get(b"authorization") == b"Bearer key":
                await self.app(scope, receive, send)
            else:
                await send({"type": "http.response.start", "status": 401, "headers": []})
                await send({"type": "http.response.body", "body": b"{}"})

    @app.post(CHAT)
    async def chat(request: Request):
        return await request.json()

    app.add_middleware(Refuses)
    app.add_middleware(ForkJoinMiddleware)

    def ask(body, *headers):
        async def receive():
            read.append(body)
            return {"type": "http.request", "body": json.dumps(body).encode()}

        async def send(message):
            sent.append(message)

        sent = []
        scope = {
            "type": "http",
            "method": "POST",
            "path": CHAT,
            "query_string": b"",
            "headers": list(headers),
        }
        asyncio.run(app(scope, receive, send))
        return sent[0]["status"]

    key = (b"authorization", b"Bearer key")
    assert ask({"forkjoin": 3}) == 401
    assert read == []
    assert ask({"forkjoin": 3}, key) == 400
    assert ask({"forkjoin": {"enabled": False}}, key) == 200
    assert len(read) == 2


def test_the_feed_of_a_request_reaches_its_response_through_the_request_id():
    seen, usage = {}, {"completion_tokens": 11, "total_tokens": 21}
    answer = json.dumps({"choices": [{"message": {}}], "usage": usage}).encode()
    _, body = _ask(
        _recorder(seen, answer, [FORKED, ENDED]),
        {"forkjoin": {"include_threads": True}},
        headers=[(b"x-request-id", b"mine")],
    )
    response = json.loads(body["body"])
    assert (response["usage"]["completion_tokens"], response["usage"]["total_tokens"]) == (8, 18)
    assert [t["index"] for t in response["choices"][0]["message"]["threads"]] == [0, 1]
    assert seen["headers"][b"x-request-id"].startswith(b"mine-fj")


def test_a_request_that_goes_on_from_a_tree_hears_how_many_tokens_each_answer_was_given(monkeypatch):
    given = Given([1], {"": [Stretch([Part([7] * 3), Part([8] * 2)], OPEN)]})

    async def compiled(*_):
        return CompiledOptions(given=given)

    monkeypatch.setattr(generating, "compiled", compiled)
    usage = {"prompt_tokens": 1, "completion_tokens": 12, "total_tokens": 13}
    app = _recorder({}, json.dumps({"choices": [], "usage": usage}).encode())
    answer = json.loads(_ask(app, {"n": 2})[1]["body"])
    counts = {"num_threads": 0, "critical_path_tokens": 12, "total_tokens": 12, "given_tokens": 10}
    assert answer["usage"] == usage | {"forkjoin": counts}


def _with_key(headers, body, path, victim):
    """What ``victim``, a feed whose key the client gives, and the client's own response get to see."""
    usage = {"completion_tokens": 11, "output_tokens": 11, "total_tokens": 21}
    if path == RESPONSES:
        usage.pop("completion_tokens")
    answer = json.dumps({"choices": [{"message": {}}], "output": [], "usage": usage}).encode()

    async def app(scope, receive, send):
        # vLLM takes the id of a response from the body, any other from the header
        given = json.loads((await receive())["body"]).get("request_id")
        given = given if path == RESPONSES else dict(scope["headers"])[b"x-request-id"].decode()
        FEEDS.publish(f"chatcmpl-{given}", [FORKED, ENDED], 0)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": answer})

    queue = FEEDS.subscribe(victim)
    try:
        sent = _ask(app, body, path, headers)
    finally:
        FEEDS.unsubscribe(victim)
    return queue, json.loads(sent[1]["body"])["usage"]


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
@pytest.mark.parametrize("place", ["header", "body"])
def test_the_events_of_a_request_are_its_own_whatever_id_its_client_gives(path, place):
    victim = new_key()
    given = f"chatcmpl-{victim}"
    headers = [(b"x-request-id", given.encode())] if place == "header" else []
    body = {"request_id": given} if place == "body" else {}
    queue, usage = _with_key(headers, body, path, victim)
    assert queue.empty()
    assert usage["forkjoin"]["num_threads"] == 2


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"messages": []}, "threads"),
        ({"prompt": "x"}, None),
        ({"prompt_embeds": "x"}, None),
    ],
)
def test_invocations_are_the_route_that_takes_their_body(body, field):
    usage = {"completion_tokens": 11, "total_tokens": 21}
    answer = json.dumps({"choices": [{"message": {}}], "usage": usage}).encode()
    asked = body | {"forkjoin": {"include_threads": field is not None}}
    _, message = _ask(_recorder({}, answer, [FORKED, ENDED]), asked, INVOCATIONS)
    response = json.loads(message["body"])
    assert response["usage"]["completion_tokens"] == 8
    assert list(response["choices"][0]["message"]) == ([field] if field else [])


def test_a_body_without_messages_is_a_completion_to_invocations():
    seen, asked = {}, {"messages": None, "prompt": "x", "forkjoin": {"include_threads": True}}
    start, answer = _ask(_recorder(seen), asked, INVOCATIONS)
    assert start["status"] == 400
    assert json.loads(answer["body"])["error"]["message"].endswith(f"got {COMPLETIONS}")
    assert seen == {}


@pytest.mark.parametrize("body", [{}, {"input": "x"}])
def test_invocations_without_what_their_route_is_chosen_by_are_told_so(body):
    seen = {}
    start, answer = _ask(_recorder(seen), body | {"forkjoin": {}}, INVOCATIONS)
    assert start["status"] == 400
    error = json.loads(answer["body"])["error"]
    assert error["message"].startswith(
        "forkjoin: expected messages, prompt or prompt_embeds beside it, got none"
    )
    assert error["param"] == "forkjoin"
    assert seen == {}


@pytest.mark.parametrize("path", ["/tokenize", f"{CHAT}/render"])
def test_the_field_is_refused_where_it_would_be_ignored(path):
    seen = {}
    start, body = _ask(_recorder(seen), {"input": "x", "forkjoin": {}}, path)
    assert start["status"] == 400
    assert f"forkjoin: {path} does not know it" in json.loads(body["body"])["error"]["message"]
    assert seen == {}


@pytest.mark.parametrize("raw", [b"", b'{"input":  1}'])
def test_any_other_route_gets_its_body_as_it_came(raw):
    seen = {}
    _ask(_recorder(seen), raw, "/tokenize")
    assert seen["body"] == raw


def test_an_upload_is_not_read():
    seen = {}
    form = [(b"content-type", b"multipart/form-data; boundary=x")]
    _ask(_recorder(seen), b"0123456789", "/v1/audio/transcriptions", form)
    assert seen["body"] == b"01234"


def test_a_response_shows_its_threads_as_output_items():
    usage = {"output_tokens": 11, "total_tokens": 21}
    answer = json.dumps({"output": [{"type": "message"}], "usage": usage}).encode()
    body = {"forkjoin": {"include_threads": True}}
    response = json.loads(_ask(_recorder({}, answer, [FORKED, ENDED]), body, RESPONSES)[1]["body"])
    assert [item["type"] for item in response["output"]] == ["message", "reasoning", "reasoning"]
    assert response["usage"]["output_tokens"] == 8


@pytest.mark.parametrize(
    ("body", "header"),
    [({"request_id": "mine"}, b"mine-fj"), ({"request_id": "é"}, b"fj"), ({"request_id": 5}, b"fj")],
    ids=["kept", "no_header_value", "not_text"],
)
def test_a_request_id_in_the_body_goes_before_our_key(body, header):
    seen = {}
    _ask(_recorder(seen), body, COMPLETIONS)
    assert seen["headers"][b"x-request-id"].startswith(header)


def test_a_route_is_known_below_the_root_path_that_the_server_was_given():
    start, _ = _ask(_recorder({}), {"forkjoin": 3}, f"/api{CHAT}", root_path="/api")
    assert start["status"] == 400


def test_a_feed_is_closed_when_its_request_fails():
    async def app(scope, receive, send):
        raise ConnectionError

    with pytest.raises(ConnectionError):
        _ask(app, {})
    assert FEEDS._queues == {}


@pytest.mark.parametrize("half", [rb"\ud800", rb"\uDFFF", b"\xed\xa0\x80"], ids=["high", "low", "raw"])
@pytest.mark.parametrize(
    "body",
    [
        b'{"forkjoin": {"branches": [{"text": "%s"}]}}',
        b'{"forkjoin": {"branches": [{"title": "%s", "text": "a="}]}}',
        b'{"messages": [{"role": "user", "content": "%s"}]}',
        b'{"stop": ["%s"]}',
        b'{"%s": 1}',
    ],
    ids=["branch", "title", "message", "stop", "key"],
)
def test_a_body_that_is_no_unicode_is_a_400_that_vllm_never_sees(body, half):
    seen = {}
    start, answer = _ask(_recorder(seen), body % half)
    assert start["status"] == 400
    assert "surrogate" in json.loads(answer["body"])["error"]["message"]
    assert seen == {}


def test_a_whole_surrogate_pair_is_a_character():
    seen = {}
    _ask(_recorder(seen), rb'{"messages": [{"role": "user", "content": "\ud83c\udf33"}]}')
    assert json.loads(seen["body"])["messages"][0]["content"] == "\N{DECIDUOUS TREE}"


def test_no_depth_of_a_body_breaks_what_reads_it():
    """Where reading it stops, and where writing it again does, are a few levels apart."""
    for depth in range(900, 1010):
        seen = {}
        start, _ = _ask(_recorder(seen), b'{"a": %s%s}' % (b"[" * depth, b"]" * depth))
        assert start["status"] in (200, 400)
