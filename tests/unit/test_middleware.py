from __future__ import annotations

import asyncio
import json

import pytest

from forkjoin_scheduler.errors import BadRequestOptions
from forkjoin_server.middleware import CHAT, Weaver, prepare
from forkjoin_server.threads import ThreadLog

FORKED = {"type": "forked", "threads": [{"index": 0, "number": "1", "title": "x"}, {"index": 1, "number": "2", "title": ""}]}  # fmt: skip
ENDED = {"type": "family_ended", "num_threads": 2, "critical_path_tokens": 5, "total_tokens": 8, "injected_tokens": 3}  # fmt: skip


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
