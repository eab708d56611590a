"""Bodies made to hurt: each is answered at once with an error, and the server serves on."""

from __future__ import annotations

import http.client
import json
import socket
from contextlib import closing

import httpx
import pytest

pytestmark = pytest.mark.server

CHAT = "/v1/chat/completions"
ASK = {"model": "abacus", "messages": [{"role": "user", "content": "a=17*23, b=4*5"}], "temperature": 0}
MANY = "a" * 9000


@pytest.fixture(autouse=True)
def _serves_on(server):
    yield
    answer = httpx.post(f"{server}{CHAT}", json=ASK | {"max_tokens": 2}, timeout=60)
    assert answer.json()["usage"]["completion_tokens"] == 2
    assert httpx.get(f"{server}/ready", timeout=60).status_code == 200


def _message(answer: httpx.Response) -> str:
    assert answer.headers["content-type"] == "application/json"
    message: str = answer.json()["error"]["message"]
    assert len(answer.content) < 2000
    return message


@pytest.mark.parametrize(
    ("forkjoin", "named"),
    [
        ({"branches": [{"text": "\ud800"}]}, "forkjoin.branches[0].text"),
        ({"branches": [{"title": "\ud800", "text": "a="}]}, "forkjoin.branches[0].title"),
        ({"branches": [{"text": "a"}], "closing": "\udfff"}, "forkjoin.closing"),
        ({"best_of": 2, "vote": "\ud800"}, "forkjoin.vote"),
        ({"branches": [{"text": "a" * 20_000_000}]}, "forkjoin.branches[0].text: expected at most"),
        ({"branches": [{"text": "a"}], "closing": "a" * 1_000_000}, "forkjoin.closing: expected at most"),
        ({"branches": [{"text": "a="}, {"text": MANY}]}, "forkjoin.branches[1].text: expected at most"),
        ({"branches": [{"text": "a="}], "closing": MANY}, "forkjoin.closing: expected at most"),
        ({"branches": [{"title": "a" * 1001}]}, "forkjoin.branches[0].title: expected at most 1000"),
        ({"best_of": 2, "vote": "(a|b)*\\1"}, "forkjoin.vote: not a regular expression of RE2's"),
        ({"x": "y" * 5_000_000}, "forkjoin.x"),
    ],
    ids=[
        "text", "title", "closing", "vote", "huge_branch", "huge_closing", "branch_over_context",
        "closing_over_context", "long_title", "backreference", "huge_key",
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_what_the_engine_could_not_do_is_a_400_that_names_it(server, forkjoin, named, stream):
    body = ASK | {"max_tokens": 20, "stream": stream, "forkjoin": forkjoin}
    answer = httpx.post(f"{server}{CHAT}", content=json.dumps(body), headers=JSON, timeout=60)
    assert answer.status_code == 400
    assert named in _message(answer)


JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "a" * 2100}),
        (CHAT, ASK | {"messages": [{"role": "user", "content": "a" * 2100}]}),
        ("/v1/responses", {"input": "a" * 2100}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "a" * 2100}], "max_tokens": 5}),
    ],
    ids=["completions", "chat", "responses", "messages"],
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_branch_must_fit_beside_the_prompt_on_every_route(server, path, body, stream):
    """Each alone would fit the context of 4,096 tokens."""
    asked = {"model": "abacus", "stream": stream, "forkjoin": {"branches": [{"text": "b" * 2100}]}} | body
    answer = httpx.post(f"{server}{path}", json=asked, timeout=60)
    assert answer.status_code == 400
    assert "forkjoin.branches[0].text: expected at most" in answer.text
    assert "tokens after a prompt of" in answer.text


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"n": 10, "max_tokens": 60, "forkjoin": {"best_of": 50, "vote": "a"}}, "--max-request-threads"),
        ({"n": 300, "max_tokens": 4000, "temperature": 1}, "--max-request-tokens"),
    ],
    ids=["threads", "tokens"],
)
def test_what_one_request_may_cost_is_limited_without_any_flag(server, body, named):
    answer = httpx.post(f"{server}{CHAT}", json=ASK | body, timeout=60)
    assert answer.status_code == 400
    assert named in _message(answer)


@pytest.mark.parametrize(
    "kinds",
    [["application/json", "multipart/x"], ["multipart/x", "application/json"], [], ["application/x+json"]],
)
@pytest.mark.parametrize("path", [CHAT, "/invocations", "/v1/responses", "/v1/messages"])
def test_vllm_xargs_never_reach_the_engine_with_our_key(server, path, kinds):
    body = ASK | {"input": "x", "max_tokens": 5, "vllm_xargs": {"forkjoin": "{}"}}
    request = httpx.Request(
        "POST", f"{server}{path}", content=json.dumps(body), headers=[("content-type", k) for k in kinds]
    )
    with httpx.Client(timeout=60) as client:
        answer = client.send(request)
    assert answer.status_code == 400
    assert "vllm_xargs.forkjoin" in answer.text


def test_a_body_over_the_limit_is_a_413_before_it_is_sent_whole(server):
    """By what its headers say: none of it is sent."""
    address = httpx.URL(server)
    with closing(http.client.HTTPConnection(address.host, address.port, timeout=60)) as connection:
        connection.putrequest("POST", CHAT)
        connection.putheader("content-type", "application/json")
        connection.putheader("content-length", str(65 << 20))
        connection.endheaders()
        answer = connection.getresponse()
        assert answer.status == 413
        assert "--max-body-mib" in json.loads(answer.read())["error"]["message"]


@pytest.mark.parametrize(
    "body", [{"model": "y" * 5_000_000}, {"messages": "y" * 5_000_000}, {"temperature": "y" * 900}]
)
def test_vllms_own_errors_repeat_little_of_a_request(server, body):
    answer = httpx.post(f"{server}{CHAT}", json=ASK | body, timeout=60)
    assert 400 <= answer.status_code < 500
    assert answer.text.count("y") <= 210


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/responses", {"input": [{}] * 300}),
        ("/v1/responses", {"input": [0] * 300}),
        ("/v1/responses", {"input": [{"role": "user", "content": [{}] * 300}]}),
        (CHAT, {"messages": [{}] * 300}),
        (CHAT, {"messages": [0] * 300}),
        ("/v1/chat/completions/batch", {"messages": [[{}] * 300]}),
        ("/v1/messages", {"messages": [{}] * 300, "max_tokens": 1}),
        ("/v1/completions", {"prompt": [5] * 3000 + ["x"]}),
    ],
)
def test_a_body_is_refused_at_its_first_wrong_item(server, path, body):
    """Not after a note of each item, and of each type that it might be of: a million, for 15 KB."""
    answer = httpx.post(f"{server}{path}", json={"model": "abacus"} | body, timeout=60)
    assert answer.status_code == 400
    assert int(_message(answer).split()[0]) < 300  # "234 validation errors"


LONG = "a1 " * 20_000


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, ASK | {"messages": [{"role": "user", "content": LONG}], "truncate_prompt_tokens": 10}),
        (CHAT, ASK | {"messages": [{"role": "user", "content": "<Thread>" * 20_000}]}),
        ("/v1/completions", {"prompt": LONG, "truncate_prompt_tokens": 10}),
        ("/tokenize", {"prompt": LONG}),
        ("/tokenize", {"messages": [{"role": "user", "content": LONG}]}),
    ],
)
def test_a_text_that_no_context_holds_is_refused_before_it_is_tokenised(server, path, body):
    answer = httpx.post(f"{server}{path}", json={"model": "abacus"} | body, timeout=60)
    assert answer.status_code == 400
    assert "the prompt: expected at most" in _message(answer)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/responses"])
def test_an_id_goes_to_the_engine_with_each_token_so_it_is_short(server, path, stream):
    body = ASK | {"prompt": "a=1+1", "input": "a=1+1", "max_tokens": 2, "stream": stream}
    answer = httpx.post(f"{server}{path}", json=body | {"request_id": "a" * 5_000_000}, timeout=60)
    assert answer.status_code == 400
    assert "the request's id: expected at most 256" in _message(answer)


def test_a_body_of_more_objects_than_any_conversation_has_is_a_400(server):
    body = ASK | {"messages": ASK["messages"] * 20_000}
    answer = httpx.post(f"{server}{CHAT}", json=body, timeout=60)
    assert answer.status_code == 400
    assert "--max-body-objects" in _message(answer)


def test_headers_that_do_not_end_are_refused(server):
    """A header of 600 MB stopped the server for a quarter of an hour."""
    address = httpx.URL(server)
    with socket.create_connection((address.host, address.port), timeout=60) as client:
        client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\na: ")
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            client.sendall(b"a" * 600 * 2**20)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "minimum": -(2**63), "maximum": -(2**63) + 5},
        {"type": "integer", "minimum": -(2**70), "maximum": -(2**70)},
        {"type": "string", "pattern": "((a{0,100}){0,100}){0,100}"},
    ],
    ids=["crashes_llguidance", "crashes_it_behind_xgrammar", "holds_the_engine"],
)
def test_a_grammar_that_would_crash_or_hold_the_server_is_refused(server, schema):
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    body = ASK | {"max_tokens": 20, "response_format": wanted}
    answer = httpx.post(f"{server}{CHAT}", json=body, timeout=60)
    assert answer.status_code == 400
    assert "response_format: expected" in _message(answer)


def _format(schema):
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


LETTERS = {"type": "string", "pattern": r"\p{L}{1000}"}
MILLION = {"type": "array", "minItems": 10**6}
UNIQUE = {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}
TEXT = {"format": {"type": "json_schema", "name": "x", "schema": LETTERS}}
CLAUDE = {"format": {"type": "json_schema", "schema": LETTERS}}


@pytest.mark.parametrize(
    ("path", "body", "named"),
    [
        (CHAT, {"response_format": _format(LETTERS)}, "Unicode character class"),
        (CHAT, {"response_format": _format(MILLION)}, "minItems"),
        (CHAT, {"response_format": _format(UNIQUE)}, "features not supported"),
        (CHAT, {"structured_outputs": {"json": {"type": "nonsense"}}}, "nonsense"),
        (CHAT, {"structured_outputs": {"regex": r"(a)\1"}}, "Backreference"),
        (CHAT, {"structured_outputs": {"grammar": "root ::= nope"}}, "nope"),
        (CHAT, {"forkjoin": {"branches": [{"text": "a="}, {"text": "b=", "response_format": _format(LETTERS)}]}},
         "forkjoin.branches[1].response_format"),
        ("/v1/completions", {"prompt": "a=1+1", "response_format": _format(LETTERS)}, "Unicode"),
        ("/v1/responses", {"input": "a=1+1", "text": TEXT}, "Unicode"),
        ("/v1/messages", {"max_tokens": 5, "output_config": CLAUDE}, "Unicode"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_grammar_that_its_library_does_not_take_is_a_400_that_says_why(server, path, body, named, stream):
    """One that another library would take, too: an engine has one library for all requests."""
    asked = (ASK if path not in ("/v1/responses", "/v1/completions") else {}) | body
    answer = httpx.post(f"{server}{path}", json={"model": "abacus", "stream": stream} | asked, timeout=60)
    assert answer.status_code == 400
    assert "xgrammar" in _message(answer) or "forkjoin.branches" in _message(answer)
    assert named in _message(answer)


def test_a_request_that_another_library_would_take_leaves_others_their_grammars(server):
    """The engine made the library of its first grammar the one of all that came later."""
    refused = httpx.post(f"{server}{CHAT}", json=ASK | {"response_format": _format(UNIQUE)}, timeout=60)
    assert refused.status_code == 400
    wanted = {"structured_outputs": {"grammar": 'root ::= "a" [0-9]'}}
    answer = httpx.post(f"{server}{CHAT}", json=ASK | wanted, timeout=60).json()
    assert answer["choices"][0]["message"]["content"][0] == "a"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_short_grammar_that_takes_minutes_to_compile_is_refused_and_others_go_on(server, stream):
    """Each part takes nearly all that the next one takes."""
    parts = " ".join(f"[^{chr(97 + i % 26)}]*" for i in range(3_000))
    bomb = ASK | {"stream": stream, "structured_outputs": {"grammar": f'root ::= "x" {parts}'}}
    answer = httpx.post(f"{server}{CHAT}", json=bomb, timeout=300)
    assert answer.status_code == 400
    assert "takes longer" in _message(answer)


@pytest.mark.parametrize(
    "grammar",
    [
        {"response_format": _format({"$ref": "#"})},
        {"structured_outputs": {"regex": r"[^\s\S]"}},
        {"response_format": _format({"$ref": "#"}), "forkjoin": {"best_of": 2, "vote": "a"}},
        {"forkjoin": {"branches": [{"text": "a=", "response_format": _format({"$ref": "#"})}]}},
    ],
    ids=["schema", "regex", "vote", "branch"],
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_grammar_that_no_text_obeys_is_a_400(server, grammar, stream):
    answer = httpx.post(f"{server}{CHAT}", json=ASK | {"stream": stream} | grammar, timeout=60)
    assert answer.status_code == 400
    assert "no text obeys it" in _message(answer)


def test_a_grammar_that_leads_nowhere_ends_its_request_and_is_no_error_of_ours(server):
    """It was one of fork/join code, with a traceback in the log: any client could raise an alarm."""
    nowhere = {"type": "string", "pattern": r"a[^\s\S]"}
    asked = {"forkjoin": {"branches": [{"text": "a=", "response_format": _format(nowhere)}, {"text": "b="}]}}
    answer = httpx.post(f"{server}{CHAT}", json=ASK | {"max_tokens": 20} | asked, timeout=60)
    assert answer.status_code == 500
    assert "the server's log says why" in _message(answer)
    counted = httpx.get(f"{server}/metrics", timeout=60).text.splitlines()
    assert [line for line in counted if line.startswith("forkjoin:internal_errors_total") and line[-2:] != " 0"
            and not line.endswith(" 0.0")] == []  # fmt: skip


SCORING = {"model": "abacus", "query": "a=17*23", "label_token_ids": [5, 6]}


@pytest.mark.parametrize(
    ("path", "body", "named"),
    [
        ("/generative_scoring", SCORING | {"query": [5] * 4000, "items": [[]] * 1_400_000}, "1400000"),
        ("/generative_scoring", SCORING | {"query": "a" * 60_000_000, "items": ["b"]}, "characters"),
        ("/v1/completions", {"model": "abacus", "max_tokens": 1, "prompt": ["a"] * 1_000_000}, "1000000"),
        (f"{CHAT}/batch", ASK | {"prompt": None, "messages": [ASK["messages"]] * 2000}, "2000"),
        (CHAT, ASK | {"n": "16384.0"}, "16384"),
    ],
    ids=["items", "query", "prompts", "chats", "choices"],
)
def test_more_answers_than_may_wait_are_refused_at_once(server, path, body, named):
    answer = httpx.post(f"{server}{path}", content=json.dumps(body), headers=JSON, timeout=60)
    assert answer.status_code == 400
    assert named in _message(answer)


def test_a_few_items_are_scored(server):
    answer = httpx.post(
        f"{server}/generative_scoring", json=SCORING | {"items": [", b=", ", c=", ""]}, timeout=60
    )
    assert (answer.status_code, [row["index"] for row in answer.json()["data"]]) == (200, [0, 1, 2])
