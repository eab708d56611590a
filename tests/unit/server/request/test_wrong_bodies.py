"""Bodies of vLLM's own application that are no request."""

from __future__ import annotations

import gc
import re

import httpx
import pytest
from fastapi import FastAPI
from pydantic import BaseModel, TypeAdapter, ValidationError

from forkjoin_server.request.wrong_bodies import stop_at_first_wrong_item
from forkjoin_server.start.configuration import resolve

pytestmark = pytest.mark.anyio

MANY = 1000


class Part(BaseModel):
    text: str


class Turn(BaseModel):
    parts: list[Part] | list[int] | str


class Chat(BaseModel):
    turns: list[Turn] | str
    more: dict[str, list[int]] = {}


class Other(BaseModel):
    ids: list[int]


#: As vLLM has them for /invocations.
ADAPTER = TypeAdapter(Chat)


@pytest.fixture
def app():
    made = FastAPI()

    @made.post("/chat")
    async def chat(body: Chat):
        return body

    @made.post("/either")
    async def either(body: Chat | Other):
        return body

    stop_at_first_wrong_item(made)
    return made


async def _ask(app, path, body):
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
        return await client.post(path, json=body)


@pytest.mark.parametrize(
    "body",
    [
        {"turns": [{}] * MANY},
        {"turns": [0] * MANY},
        {"turns": [{"parts": [{}] * MANY}] * MANY},
        {"turns": [{"parts": [1] * MANY + ["x"]}]},
        {"turns": "", "more": {"a": ["x"] * MANY}},
        {"ids": ["x"] * MANY},
    ],
)
@pytest.mark.parametrize("path", ["/chat", "/either"])
async def test_a_list_is_refused_at_its_first_wrong_item(app, path, body):
    answer = await _ask(app, path, body)
    assert answer.status_code == 422
    assert 1 <= len(answer.json()["detail"]) < 10


@pytest.mark.parametrize("make", [ADAPTER.validate_python, Chat.model_validate, lambda body: Chat(**body)])
def test_so_it_is_where_a_handler_reads_the_body_itself(app, make):
    with pytest.raises(ValidationError) as raised:
        make({"turns": [0] * MANY})
    assert raised.value.error_count() < 10


def test_models_that_an_engine_froze_are_found_too():
    adapter = TypeAdapter(Other)
    gc.freeze()
    try:
        made = FastAPI()
        made.post("/other")(_takes_other)
        stop_at_first_wrong_item(made)
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
    with pytest.raises(ValidationError) as raised:
        adapter.validate_python({"ids": ["x"] * MANY})
    assert raised.value.error_count() == 1


#: A route of vLLM's, and a field of a wrong type that one of its checks takes for the right one.
STUMBLES = [
    ("/v1/chat/completions", "structured_outputs", 0),
    ("/v1/chat/completions", "tools", 1),
    ("/v1/chat/completions", "tool_choice", {"type": "function", "function": 0}),
    ("/v1/completions", "structured_outputs", "x"),
    ("/v1/responses", "tools", 1.5),
    ("/v1/responses", "input", [[]]),
]


@pytest.mark.parametrize(("path", "name", "value"), STUMBLES)
async def test_a_field_of_a_wrong_type_is_refused(served, path, name, value):
    """Some of them were a 500 and a traceback."""
    answer = await _ask(
        served, path, {"model": "abacus", "messages": [], "prompt": "a", "input": "a"} | {name: value}
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


async def _takes_other(body: Other):
    return body


async def test_what_is_right_is_read_as_before(app):
    body = {"turns": [{"parts": [{"text": "a"}]}, {"parts": [1, "2"]}, {"parts": "c"}], "more": {"a": [1]}}
    answer = await _ask(app, "/chat", body)
    assert answer.json() == {
        "turns": [{"parts": [{"text": "a"}]}, {"parts": [1, 2]}, {"parts": "c"}],
        "more": {"a": [1]},
    }
    assert isinstance(Chat.model_validate(body), Chat)
    assert (await _ask(app, "/either", {"ids": [1]})).json() == {"ids": [1]}


@pytest.fixture(scope="module")
def served():
    """vLLM's own application."""
    from vllm.entrypoints.launchers.app import build_app

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["forkjoin", "serve"])
        args = resolve([], {}).args
        args.middleware = []
        made = build_app(args, ("generate", "render"))
    made.state.args = args
    stop_at_first_wrong_item(made)
    return made


#: A route of vLLM's, a list in its body, and a wrong item of it.
LISTS = [
    ("/v1/chat/completions", "messages", {}),
    ("/v1/chat/completions", "messages", 0),
    ("/v1/chat/completions/batch", "messages", [{}]),
    ("/v1/chat/completions/render", "messages", {}),
    ("/v1/responses", "input", {}),
    ("/v1/responses", "input", 0),
    ("/v1/responses", "input", {"role": "user", "content": [{}] * 9}),
    ("/v1/responses", "tools", {}),
    ("/v1/messages", "messages", {}),
    ("/v1/messages/count_tokens", "messages", {}),
    ("/v1/completions", "prompt", ["x", 5]),
    ("/inference/v1/generate", "token_ids", "x"),
    ("/tokenize", "messages", {}),
    ("/detokenize", "tokens", "x"),
]


@pytest.mark.parametrize(("path", "name", "item"), LISTS)
async def test_vllms_routes_refuse_a_list_at_its_first_wrong_item(served, path, name, item):
    """15 KB to /v1/responses were a million errors before: 20 s and 5 GB."""
    answer = await _ask(served, path, {"model": "abacus", name: [item] * 300})
    assert answer.status_code == 400
    found = re.match(r"(\d+) validation errors?:", answer.json()["error"]["message"])
    assert found
    assert int(found[1]) < 300
