"""What a request for scores may be made of."""

from __future__ import annotations

import json

import pytest

from forkjoin_scheduler.errors import BadRequestOptions
from forkjoin_scheduler.request.compiled import Room
from forkjoin_server.request.scoring import check_scoring, count_parts
from forkjoin_server.routes import CHAT, DECISIONS, SCORING

ROOM = Room(max_tokens=100, max_chars_per_token=8)


def check(**body):
    check_scoring(body, len(json.dumps(body)), ROOM, max_tokens=1000)


@pytest.mark.parametrize(
    ("path", "body", "num"),
    [
        (SCORING, {"query": "x", "items": ["a", "b"]}, 2),
        (SCORING, {"query": [1], "items": [[]] * 3}, 3),
        (SCORING, {"query": "x", "items": "abc"}, 1),
        (SCORING, {"items": []}, 1),
        (DECISIONS, {"questions": {"a": {}, "b": {}}}, 2),
        (CHAT, {"items": [1, 2], "": [1, 2]}, 1),
    ],
)
def test_each_item_and_each_question_becomes_a_prompt(path, body, num):
    assert count_parts(body, path) == num


@pytest.mark.parametrize(
    "body",
    [
        {"query": "Is it good?", "items": ["a" * 20] * 30, "label_token_ids": [1, 2]},
        {"query": [1] * 50, "items": [[2] * 50] * 10},
        {"query": [1] * 90, "items": [[2] * 10_000] * 10},  # cut at the context
        {"query": "x" * 800, "items": [[1]]},
        {"query": None, "items": {"a": 1}},  # vLLM says what is wrong with these
        {"items": [None, 3]},
        {},
    ],
)
def test_ordinary_and_wrong_bodies_are_left_to_vllm(body):
    check(**body)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"query": "x" * 801, "items": ["a"]}, "at most 800 characters.*got 802"),
        ({"query": "x", "items": ["a" * 100] * 9}, "at most 800 characters.*got 901"),
        ({"query": [1] * 50, "items": [[]] * 21}, "at most 1000 tokens over all prompts.*up to 1050"),
        ({"query": "x" * 60, "items": [[1] * 40] * 11}, "at most 1000 tokens over all prompts.*up to 1100"),
        ({"items": [[1]] * 20, "label_token_ids": [1] * 2_000_000}, "bytes beside the prompt"),
    ],
    ids=["query", "items", "empty_items", "texts", "labels"],
)
def test_too_much_for_the_event_loop_is_refused(body, message):
    with pytest.raises(BadRequestOptions, match=message):
        check(**body)
