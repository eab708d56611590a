from __future__ import annotations

import asyncio
import json

import pytest

from forkjoin_scheduler.errors import BadRequestOptions
from forkjoin_scheduler.feed import FEEDS
from forkjoin_scheduler.options import parse_options
from forkjoin_server.middleware import CHAT, PATHS, ForkJoinMiddleware, Weaver, prepare
from forkjoin_server.threads import ThreadLog

FORKED = {"type": "forked", "parent_index": -1, "threads": [{"index": 0, "number": "1", "title": "x"}, {"index": 1, "number": "2", "title": ""}]}  # fmt: skip
ENDED = {"type": "family_ended", "family": "r", "num_threads": 2, "critical_path_tokens": 5, "total_tokens": 8, "surplus_tokens": 3}  # fmt: skip


_STREAM = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"text/event-stream; charset=utf-8")],
}
#: As the engine publishes it to all observers, metrics too.
_FORKED = FORKED | {"num_duplicates": 0, "shared_tokens": 3}


def test_the_field_moves_to_where_the_engine_reads_it():
    body, wants = prepare({"forkjoin": {"max_forks": 1}, "vllm_xargs": {"a": 1}}, CHAT, "k")
    assert body == {"vllm_xargs": {"a": 1, "forkjoin": '{"max_forks": 1}'}}
    assert not wants


def test_include_threads_in_stream_options_is_taken_out_of_them():
    body, wants = prepare({"stream_options": {"include_threads": True, "include_usage": True}}, CHAT, "k")
    assert wants
    assert body["stream_options"] == {"include_usage": True}


def test_threads_of_several_choices_are_refused():
    with pytest.raises(BadRequestOptions, match="n = 2"):
        prepare({"n": 2, "forkjoin": {"include_threads": True}}, CHAT, "k")


def _weave(messages, events, wants=True):
    sent, queue = [], asyncio.Queue()

    async def run():
        async def send(message):
            sent.append(message)

        weaver = Weaver(send, queue, ThreadLog("k"), wants)
        for message, before in zip(messages, events, strict=True):
            for event in before:
                queue.put_nowait(event)
            await weaver.send(message)

    asyncio.run(run())
    return sent


def _sse(chunk):
    return {
        "type": "http.response.body",
        "body": b"data: " + json.dumps(chunk).encode() + b"\n\n",
        "more_body": True,
    }


def test_thread_events_stand_before_the_content_that_follows_them_and_usage_is_corrected():
    start = {
        "type": "http.response.start",
        "status": 200,
        "headers": [(b"content-type", b"text/event-stream")],
    }
    usage = {"completion_tokens": 11, "total_tokens": 21, "prompt_tokens": 10}
    messages = [start, _sse({"id": "i", "choices": [1]}), _sse({"id": "i", "choices": [2]}), _sse({"choices": [], "usage": usage})]  # fmt: skip
    token = {"type": "tokens", "index": 1, "text": "hi", "token_ids": [1]}
    sent = _weave(messages, [[], [], [FORKED, token], [ENDED]])
    chunks = [json.loads(m["body"].removeprefix(b"data: ")) for m in sent[1:]]
    assert chunks[0]["choices"] == [1]
    assert [e["index"] for e in chunks[1]["choices"][0]["delta"]["threads"]] == [0, 1]
    assert chunks[2]["choices"][0]["delta"]["threads"] == [{"index": 1, "content": "hi"}]
    assert chunks[3]["choices"] == [2]
    assert chunks[4]["usage"]["completion_tokens"] == 8
    assert chunks[4]["usage"]["forkjoin"]["num_threads"] == 2


def test_a_whole_response_gets_its_threads_and_a_length_that_fits():
    start = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]}
    body = {"choices": [{"message": {"content": "x"}}], "usage": {"completion_tokens": 4, "total_tokens": 5}}
    message = {"type": "http.response.body", "body": json.dumps(body).encode()}
    sent = _weave([start, message], [[], [FORKED, ENDED]])
    assert dict(sent[0]["headers"])[b"content-length"] == str(len(sent[1]["body"])).encode()
    threads = json.loads(sent[1]["body"])["choices"][0]["message"]["threads"]
    assert [t["title"] for t in threads] == ["x", "2"]


def test_without_a_fork_the_bytes_are_vllms_own():
    start = {"type": "http.response.start", "status": 200, "headers": []}
    message = {"type": "http.response.body", "body": b'{"a":  1}'}
    assert _weave([start, message], [[], []])[1]["body"] == b'{"a":  1}'


def test_what_the_engine_is_told_is_json_that_it_reads_back():
    fields = {"max_forks": 1, "enabled": False}
    body, _ = prepare({"forkjoin": fields}, CHAT, "k")
    assert parse_options(body["vllm_xargs"]["forkjoin"]) == parse_options(fields)


def test_a_body_that_says_nothing_of_fork_join_passes_as_it_is():
    given = {"model": "m", "messages": [], "n": 3, "stream_options": {"include_usage": True}}
    assert prepare(given, CHAT, "k") == (given, False)


def test_the_clients_own_body_is_not_changed():
    given = {"forkjoin": {"max_forks": 1}, "stream_options": {"include_threads": True}, "vllm_xargs": {}}
    before = json.dumps(given)
    prepare(given, CHAT, "k")
    assert json.dumps(given) == before


@pytest.mark.parametrize(
    "body",
    [
        {"forkjoin": {"bogus": 1}},
        {"forkjoin": 3},
        {"stream_options": {"include_threads": "yes"}},
        {"n": 2, "stream_options": {"include_threads": True}},
    ],
    ids=["unknown_key", "no_object", "type", "several_choices"],
)
def test_a_wrong_body_is_refused(body):
    with pytest.raises(BadRequestOptions):
        prepare(body, CHAT, "k")


def test_several_choices_may_fork_unseen():
    body, wants = prepare({"n": 2, "forkjoin": {"max_forks": 1}}, CHAT, "k")
    assert (body["n"], wants) == (2, False)


@pytest.mark.parametrize(("path", "wants"), [(p, p == CHAT) for p in PATHS])
def test_threads_are_shown_on_chat_completions_only(path, wants):
    assert prepare({"forkjoin": {"include_threads": True}}, path, "k")[1] is wants


def _ask(app, body, path=CHAT, headers=()):
    """What a client of the middleware around ``app`` is sent for ``body`` (bytes or JSON)."""
    sent = []
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    parts = [(data[:5], True), (data[5:], False)]

    async def receive():
        part, more = parts.pop(0)
        return {"type": "http.request", "body": part, "more_body": more}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "headers": list(headers)}
    asyncio.run(ForkJoinMiddleware(app)(scope, receive, send))
    return sent


def _recorder(seen, answer=b"{}", events=()):
    """A stand-in for vLLM: notes what it is asked, publishes ``events``, answers ``answer``."""

    async def app(scope, receive, send):
        headers = dict(scope["headers"])
        seen.update(headers=headers, body=(await receive())["body"])
        FEEDS.publish(f"chatcmpl-{headers.get(b'x-request-id', b'').decode()}", list(events))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": answer})

    return app


def test_an_unknown_field_is_a_400_that_vllm_never_sees():
    seen = {}
    start, body = _ask(_recorder(seen), {"forkjoin": {"bogus": 1}})
    assert start["status"] == 400
    assert "forkjoin.bogus" in json.loads(body["body"])["error"]["message"]
    assert seen == {}


@pytest.mark.parametrize("raw", [b"{", b"\xff\xfe\xfa", b"null", b"3"])
def test_a_body_that_is_no_object_goes_to_vllm_as_it_came(raw):
    seen = {}
    _ask(_recorder(seen), raw)
    assert seen["body"] == raw


def test_the_feed_of_a_request_reaches_its_response_through_the_request_id():
    seen, usage = {}, {"completion_tokens": 11, "total_tokens": 21}
    answer = json.dumps({"choices": [{"message": {}}], "usage": usage}).encode()
    forkjoin = {"include_threads": True}
    _, body = _ask(
        _recorder(seen, answer, [_FORKED, ENDED]),
        {"forkjoin": forkjoin},
        headers=[(b"x-request-id", b"mine")],
    )
    response = json.loads(body["body"])
    assert (response["usage"]["completion_tokens"], response["usage"]["total_tokens"]) == (8, 18)
    assert [t["index"] for t in response["choices"][0]["message"]["threads"]] == [0, 1]
    assert seen["headers"][b"x-request-id"].startswith(b"mine-fj")


def test_a_feed_is_closed_when_its_request_fails():
    async def app(scope, receive, send):
        raise ConnectionError

    with pytest.raises(ConnectionError):
        _ask(app, {})
    assert FEEDS._queues == {}


def test_an_event_is_not_kept_waiting_for_vllms_next_chunk():
    sent, queue = [], asyncio.Queue()

    async def run():
        shown = asyncio.Event()

        async def send(message):
            sent.append(message)
            if b"threads" in message.get("body", b""):
                shown.set()

        weaver = Weaver(send, queue, ThreadLog("k"), True)
        pump = asyncio.create_task(weaver.pump())
        await weaver.send(_STREAM)
        await weaver.send(_sse({"id": "i", "model": "m", "choices": [1]}))
        queue.put_nowait(FORKED)
        await asyncio.wait_for(shown.wait(), 10)
        pump.cancel()

    asyncio.run(run())
    chunk = json.loads(sent[-1]["body"].removeprefix(b"data: "))
    assert (chunk["id"], chunk["model"]) == ("i", "m")
    assert [t["index"] for t in chunk["choices"][0]["delta"]["threads"]] == [0, 1]


def test_a_client_that_did_not_ask_sees_no_threads_but_the_right_usage():
    usage = {"completion_tokens": 11, "total_tokens": 21}
    messages = [_STREAM, _sse({"id": "i", "choices": [1]}), _sse({"choices": [], "usage": usage})]
    sent = _weave(messages, [[], [FORKED], [ENDED]], wants=False)
    assert not any(b"delta" in m.get("body", b"") for m in sent)
    assert json.loads(sent[-1]["body"].removeprefix(b"data: "))["usage"]["completion_tokens"] == 8


def test_an_event_split_over_messages_is_put_together_and_the_end_passes_as_it_is():
    whole = b'data: {"id": "i"}\n\ndata: [DONE]\n\n'
    parts = [whole[:9], whole[9:25], whole[25:]]
    bodies = [{"type": "http.response.body", "body": p, "more_body": p != parts[-1]} for p in parts]
    sent = _weave([_STREAM, *bodies], [[], [], [], []])
    assert b"".join(m["body"] for m in sent[1:]) == whole
    assert not sent[-1].get("more_body")


def test_an_error_of_vllm_is_not_corrected():
    start = {"type": "http.response.start", "status": 500, "headers": []}
    message = {"type": "http.response.body", "body": b'{"error":  1}'}
    assert _weave([start, message], [[], [FORKED, ENDED]])[1]["body"] == b'{"error":  1}'


def test_options_that_come_around_the_field_are_refused():
    with pytest.raises(BadRequestOptions, match="vllm_xargs"):
        prepare({"vllm_xargs": {"forkjoin": "{"}}, CHAT, "k")
