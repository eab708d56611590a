"""Responses that vLLM stores: fetched, they say what the answer to their request said."""

from __future__ import annotations

import asyncio
import json

import pytest

from forkjoin_scheduler.policy.backlog import Tenant, Visit
from forkjoin_scheduler.publish.feed import FEEDS
from forkjoin_scheduler.request.visits import VISIT
from forkjoin_server.http import generating
from forkjoin_server.http.bodies import BodyMiddleware
from forkjoin_server.routes import RESPONSES, STORED
from tests.unit.server.http.test_middleware import ENDED, FORKED

USAGE = {"input_tokens": 10, "output_tokens": 11, "total_tokens": 21}
ITEM = {"type": "message", "content": [{"type": "output_text", "text": "12"}]}


class Store:
    """A stand-in for vLLM, which stores a response as it made it; ``late``: it is made after the request."""

    def __init__(self, *, late: bool, streams: bool = False) -> None:
        self._late, self._streams = late, streams
        self._responses: dict[str, dict] = {}

    def finish(self, response_id):
        FEEDS.publish(f"{response_id}_0-0123abcd", [FORKED, ENDED], 0)
        self._responses[response_id] = {"id": response_id, "output": [ITEM], "usage": USAGE}

    async def __call__(self, scope, receive, send):
        if scope["method"] == "GET":
            response = self._responses[scope["path"].removeprefix(STORED)]
        else:
            response_id = json.loads((await receive())["body"])["request_id"]
            response = {"id": response_id, "output": [], "usage": None}
            if not self._late:
                self.finish(response_id)
                response = self._responses[response_id]
        told, kind = json.dumps(response), b"application/json"
        if self._streams and scope["method"] == "POST":
            told, kind = (
                json.dumps({"type": "response.completed", "response": response}),
                b"text/event-stream",
            )
            told = f"event: response.completed\ndata: {told}\n\n"
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
        await send({"type": "http.response.body", "body": told.encode()})


@pytest.fixture
def ask(monkeypatch):
    """Asks a middleware that stands around a store."""
    monkeypatch.setattr(generating, "stores_responses", lambda: True)
    monkeypatch.setattr(FEEDS, "_queues", {})  # a response that is stored keeps its feed

    def make(store):
        bodies = BodyMiddleware(store)

        def call(method, path, body=b""):
            sent = []

            async def receive():
                return {"type": "http.request", "body": body, "more_body": False}

            async def send(message):
                sent.append(message)

            scope = {"type": "http", "method": method, "path": path, "headers": []}
            asyncio.run(bodies(scope, receive, send))
            return json.loads(sent[-1]["body"])

        return call

    return make


@pytest.mark.parametrize("shown", [True, False])
def test_a_stored_response_is_fetched_as_it_was_answered(ask, shown):
    call = ask(Store(late=False))
    body = {"input": "x", "forkjoin": {"include_threads": shown}}
    response = call("POST", RESPONSES, json.dumps(body).encode())
    assert response["usage"]["forkjoin"]["num_threads"] == 2
    assert len(response["output"]) == (3 if shown else 1)
    assert call("GET", STORED + response["id"]) == response


@pytest.mark.parametrize("streams", [False, True], ids=["whole", "streamed"])
def test_a_response_is_fetched_right_as_soon_as_its_end_is_told(monkeypatch, streams):
    """For a moment its usage was vLLM's."""
    monkeypatch.setattr(generating, "stores_responses", lambda: True)
    store, fetched = Store(late=False, streams=streams), []
    bodies = BodyMiddleware(store)

    async def ask(method, path, send):
        body = json.dumps({"input": "x", "stream": streams}).encode()
        scope = {"type": "http", "method": method, "path": path, "headers": []}

        async def receive():
            return {"type": "http.request", "body": body, "more_body": False}

        await bodies(scope, receive, send)

    async def fetch(message):
        if b'"usage"' in message.get("body", b"") and not fetched:
            text = message["body"].decode()
            fetched.append(
                json.loads(text.partition("data: ")[2])["response"] if streams else json.loads(text)
            )
            await ask("GET", STORED + fetched[0]["id"], keep)

    async def keep(message):
        if message["type"] == "http.response.body":
            fetched.append(json.loads(message["body"]))

    asyncio.run(ask("POST", RESPONSES, fetch))
    told, stored = fetched
    assert told["usage"]["forkjoin"]["num_threads"] == 2
    assert stored == told


@pytest.mark.parametrize("request_id", [None, "my_response"])
def test_what_happens_in_the_background_is_heard_after_the_request(ask, request_id):
    store = Store(late=True)
    call = ask(store)
    body = {"input": "x", "background": True} | ({} if request_id is None else {"request_id": request_id})
    queued = call("POST", RESPONSES, json.dumps(body).encode())
    store.finish(queued["id"])
    usage = call("GET", STORED + queued["id"])["usage"]
    assert (usage["output_tokens"], usage["total_tokens"]) == (8, 18)
    assert usage["forkjoin"]["total_tokens"] == 8


def test_what_is_not_to_be_stored_is_not_kept(ask):
    call = ask(Store(late=False))
    response = call("POST", RESPONSES, json.dumps({"input": "x", "store": False}).encode())
    assert call("GET", STORED + response["id"])["usage"] == USAGE


@pytest.fixture
def as_tenant():
    """Lets the next requests be of a tenant."""
    before = VISIT.set(None)
    yield lambda name: VISIT.set(Visit(Tenant(id=name)))
    VISIT.reset(before)


@pytest.mark.parametrize("late", [False, True], ids=["at_once", "background"])
def test_a_stored_response_is_there_for_its_own_key_only(ask, as_tenant, late):
    store = Store(late=late)
    call = ask(store)
    as_tenant("alice")
    mine = {"input": "x", "background": late} | ({"request_id": "mine"} if late else {})
    response_id = call("POST", RESPONSES, json.dumps(mine).encode())["id"]
    store.finish(response_id)
    as_tenant("bob")
    for method, path in (("GET", STORED + response_id), ("POST", f"{STORED}{response_id}/cancel")):
        assert call(method, path)["error"]["code"] == 404
    goes_on = json.dumps({"input": "x", "previous_response_id": response_id}).encode()
    assert call("POST", RESPONSES, goes_on)["error"]["code"] == 404
    again = call(
        "POST", RESPONSES, json.dumps(mine | {"request_id": response_id, "background": True}).encode()
    )
    assert again["error"]["code"] == 400
    as_tenant("alice")
    assert call("GET", STORED + response_id)["usage"]["forkjoin"]["num_threads"] == 2
    assert "error" not in call("POST", RESPONSES, goes_on)


@pytest.mark.parametrize("request_id", [5, [], {}, True])
def test_an_id_that_is_no_text_is_vllms_to_refuse(ask, request_id):
    call = ask(Store(late=True))
    body = {"input": "x", "request_id": request_id, "store": False}
    assert call("POST", RESPONSES, json.dumps(body).encode())["id"] == request_id
