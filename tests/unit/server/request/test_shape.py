from __future__ import annotations

import json

import pytest

from forkjoin_scheduler.errors import BadRequestOptions
from forkjoin_server.request.shape import (
    MAX_BESIDE_PROMPT_BYTES,
    MAX_COMMAS,
    check_beside_prompt,
    check_request_id,
    read_json,
)

MOST = 100


@pytest.mark.parametrize(
    ("raw", "read"),
    [
        (b'{"a": 1}', {"a": 1}),
        ('{"a": "ä"}'.encode("utf-16"), {"a": "ä"}),
        (b'{"a": "' + b"{:," * 1000 + b'"}', {"a": "{:," * 1000}),
        (b'{"a": 1', None),
        (b"", None),
    ],
)
def test_what_is_no_json_is_left_to_vllm(raw, read):
    assert read_json(raw, MOST) == read


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        (json.dumps({"messages": [{}] * MOST}).encode(), f"at most {MOST} objects.*got {MOST + 1}"),
        (json.dumps({"a": [[{"b": {}}]] * MOST}).encode(), f"got {2 * MOST + 1}"),
        (json.dumps({str(n): 0 for n in range(MOST + 1)}).encode(), f"got 1 and {MOST + 1} keys"),
        (b'{"a": [' + b"0," * (MAX_COMMAS + 1) + b"0]}", "at most 1500000 values"),
        (b"0," * (MAX_COMMAS + 1), "at most 1500000 values"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "fewer of each other"),
        (b'{"a": ' + b"9" * 5000 + b"}", "numbers of fewer digits"),
        (b'{"a": "\xff"}', "JSON in UTF-8"),
        (b"[1]", "JSON object, got a list"),
        (b" 1.5", "JSON object, got a number"),
        (b'"a"', "JSON object, got a string"),
        (b"true", "JSON object, got a boolean"),
        (b"null", "JSON object, got null"),
    ],
    ids=["objects", "nested", "keys", "values", "no_object", "deep", "digits", "encoding",
         "list", "number", "string", "boolean", "null"],
)  # fmt: skip
def test_what_takes_too_long_or_cannot_be_read_is_refused(raw, named):
    with pytest.raises(BadRequestOptions, match=named) as raised:
        read_json(raw, MOST)
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize("request_id", [None, 5, "", "a", "a" * 256, "ä"])
def test_an_id_that_is_short_and_can_be_printed_passes(request_id):
    check_request_id(request_id)


@pytest.mark.parametrize("request_id", ["a" * 257, "a\nb", "\x1b[31m", "\x00"])
def test_any_other_id_does_not(request_id):
    with pytest.raises(BadRequestOptions, match="the request's id"):
        check_request_id(request_id)


def test_what_goes_to_the_engine_with_each_answer_is_counted_with_each():
    large = "a" * (MAX_BESIDE_PROMPT_BYTES // 4)
    body = {"messages": large, "stop": "x"}
    check_beside_prompt(body, len(large), 1000)
    body = {"messages": "x", "vllm_xargs": {"x": large}}
    num_bytes = len(json.dumps(body))
    check_beside_prompt(body, num_bytes, 3)
    with pytest.raises(BadRequestOptions, match="beside the prompt"):
        check_beside_prompt(body, num_bytes, 4)
