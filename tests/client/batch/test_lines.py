from __future__ import annotations

import json
from pathlib import Path

import pytest

from forkjoin.batch.lines import BadBatch, checked, read_lines

RIGHT = {"custom_id": "1", "method": "POST", "url": "/v1/completions", "body": {"prompt": "a"}}


def _of(*lines):
    return [json.dumps(line).encode() for line in lines]


@pytest.mark.parametrize(
    "url",
    ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/score", "/v2/rerank"],
)
def test_a_line_is_a_request_to_one_of_the_routes(url):
    (line,) = checked(_of(RIGHT | {"url": url}), "in")
    assert (line.custom_id, line.url, json.loads(line.body)) == ("1", url, {"prompt": "a"})


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"custom_id": "1"', 'expected a JSON object, got {"custom_id": "1": '),
        (b"\xff", "expected a JSON object, got �: "),
        (b"[" * 100_000, "expected a JSON object, got [[["),
        (b"[1]", "expected a JSON object, got [1]: write {"),
        (RIGHT | {"forkjoin": {}}, 'expected custom_id, method, url and body, got "forkjoin" too: drop it'),
        (RIGHT | {"custom_id": 1}, "custom_id: expected a text, got 1: write"),
        (RIGHT | {"custom_id": ""}, 'custom_id: expected a text, got "": write'),
        ({k: RIGHT[k] for k in ("method", "url", "body")}, "custom_id: expected a text, got none: write"),
        (RIGHT | {"method": "GET"}, 'method: expected "POST", got "GET": write'),
        (RIGHT | {"url": "/v1/messages"}, "url: expected one of /v1/chat/completions, /v1/completions, "),
        (RIGHT | {"url": "http://h/v1/score"}, "url: expected one of "),
        (RIGHT | {"url": "/\n/score"}, r'url: expected one that can be sent, got "/\n/score": '),
        (RIGHT | {"url": "/\udcff/score"}, r'url: expected one that can be sent, got "/\udcff/score": '),
        (RIGHT | {"body": "a"}, 'body: expected a JSON object, got "a": write'),
        (RIGHT | {"body": {"stream": True}}, "body.stream: expected none, for a batch has whole answers"),
        (RIGHT | {"body": {"background": True}}, "body.background: expected none, for a batch"),
        (RIGHT | {"body": {"temperature": float("nan")}}, "body: expected what JSON can say, got NaN"),
    ],
)
def test_a_wrong_line_is_named_with_what_was_expected_and_got(line, said):
    with pytest.raises(BadBatch) as error:
        checked([*_of(RIGHT), b"", line if isinstance(line, bytes) else json.dumps(line).encode()], "in")
    assert str(error.value).startswith(f"nothing was asked:\nin:3: {said}")


def test_a_custom_id_that_two_lines_have_is_an_error_that_names_both():
    with pytest.raises(BadBatch) as error:
        checked(_of(RIGHT, RIGHT | {"custom_id": "2"}, RIGHT), "in")
    assert str(error.value) == (
        'nothing was asked:\nin:3: custom_id: expected one of its own, got "1", which line 1 has: give each '
        "line another"
    )


def test_all_wrong_lines_are_named_but_not_more_than_somebody_reads():
    with pytest.raises(BadBatch) as error:
        checked([b"1"] * 30, "in")
    said = str(error.value).splitlines()
    assert [line.partition(": ")[0] for line in said[1:-1]] == [f"in:{n}" for n in range(1, 21)]
    assert said[-1] == "and 10 more"


def test_a_file_is_read_as_editors_write_it(tmp_path):
    path = tmp_path / "in.jsonl"
    texts = [json.dumps(RIGHT | {"custom_id": name}, ensure_ascii=False) for name in ("ä\u2028", "b")]
    path.write_bytes(("\ufeff" + "\r\n".join(texts) + "\r\n").encode())
    assert [line.custom_id for line in read_lines(path)] == ["ä\u2028", "b"]


@pytest.mark.parametrize(
    ("name", "said"),
    [("none", "none: No such file"), (".", ": Is a directory"), ("empty", "got none: write")],
)
def test_a_file_without_requests_is_an_error(name, said, tmp_path):
    (tmp_path / "empty").write_text("\n\n")
    with pytest.raises(BadBatch, match=said):
        read_lines(tmp_path / name)


def test_the_example_is_one():
    lines = read_lines(Path(__file__).parents[3] / "examples/batch.jsonl")
    assert [line.custom_id for line in lines] == ["two", "none", "three", "wrong"]


@pytest.mark.parametrize("change", [{"custom_id": "2"}, {"url": "/v1/responses"}, {"body": {"prompt": "b"}}])
def test_another_request_has_another_id_and_the_same_one_the_same(change):
    same, other = checked(_of(RIGHT), "in")[0], checked(_of(RIGHT | change), "in")[0]
    assert same.id == checked(_of(dict(reversed(RIGHT.items()))), "in")[0].id
    assert same.id != other.id
