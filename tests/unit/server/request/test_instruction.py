from __future__ import annotations

import json

import pytest

from forkjoin_server.request.instruction import with_instruction
from forkjoin_server.routes import BATCH, CHAT, COMPLETIONS, MESSAGES, RESPONSES

USER = {"role": "user", "content": "first"}
FORK = "\n\nFork!"
TOLD = {"role": "user", "content": "first\n\nFork!"}
ANSWER = {"role": "assistant", "content": "answer"}
TOOL = {"role": "tool", "content": "result"}


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        ([USER], [TOLD]),
        ([USER, ANSWER, USER], [USER, ANSWER, TOLD]),
        ([USER, ANSWER, TOOL], [TOLD, ANSWER, TOOL]),
        ([ANSWER], [ANSWER]),
        ([], []),
        ("x", "x\n\nFork!"),
        (3, 3),
        ([None, {"role": "user"}], [None, {"role": "user", "content": None}]),
    ],
)
@pytest.mark.parametrize("path", [CHAT, MESSAGES])
def test_the_instruction_stands_at_the_end_of_the_last_user_message(path, messages, told):
    body = {"messages": messages, "n": 1}
    before = json.dumps(body)
    assert with_instruction(body, path, FORK) == {"messages": told, "n": 1}
    assert json.dumps(body) == before


@pytest.mark.parametrize(
    ("path", "field", "kind"), [(CHAT, "messages", "text"), (RESPONSES, "input", "input_text")]
)
def test_a_message_of_parts_gets_one_more(path, field, kind):
    parts = [{"type": kind, "text": "first"}]
    body = with_instruction({field: [{"role": "user", "content": parts}]}, path, FORK)
    assert body[field][0]["content"] == [*parts, {"type": kind, "text": FORK}]


def test_the_input_of_a_response_may_be_a_text():
    assert with_instruction({"input": "first"}, RESPONSES, FORK) == {"input": "first\n\nFork!"}


def test_each_conversation_of_a_batch_is_told():
    body = with_instruction({"messages": [[USER], [USER, ANSWER]]}, BATCH, FORK)
    assert body["messages"] == [[TOLD], [TOLD, ANSWER]]


@pytest.mark.parametrize(("body", "path"), [({"prompt": "x"}, COMPLETIONS), ({}, CHAT)])
def test_what_is_no_conversation_stays_as_it_is(body, path):
    assert with_instruction(body, path, FORK) == body
