from __future__ import annotations

import asyncio
import json

from forkjoin_scheduler.families.thread_end import ThreadEnd
from forkjoin_scheduler.publish.events import FamilyEnded, Forked, NewThread, ThreadEnded, Tokens
from forkjoin_server.answer.chat import ChatThreads
from forkjoin_server.answer.responses import ResponseThreads
from forkjoin_server.answer.threads import ThreadLog
from forkjoin_server.answer.weaver import PassThrough, Weaver

FORKED = Forked(parent_index=-1, threads=[NewThread(index=0, number="1", title="x"), NewThread(index=1, number="2", title="")], shared_tokens=0)  # fmt: skip
ENDED = FamilyEnded(family="r", num_threads=2, critical_path_tokens=5, total_tokens=8, surplus_tokens=3)  # fmt: skip
START = {"type": "http.response.start", "status": 200, "headers": []}
STREAM = START | {"headers": [(b"content-type", b"text/event-stream; charset=utf-8")]}


def _weaver(send, queue, present):
    log = ThreadLog("k", is_wanted=present is not _unseen)
    return Weaver(send, queue, log, present(log))


def _unseen(log):
    return PassThrough()


def _weave(messages, events, present=ChatThreads):
    """What is sent when each of ``messages`` comes after the events at its place."""
    sent, queue = [], asyncio.Queue()

    async def run():
        async def send(message):
            sent.append(message)

        weaver = _weaver(send, queue, present)
        for message, before in zip(messages, events, strict=True):
            for event in before:
                queue.put_nowait(event)
            await weaver.send(message)

    asyncio.run(run())
    return sent


def _sse(chunk, name=None):
    body = (f"event: {name}\n" if name else "") + f"data: {json.dumps(chunk)}\n\n"
    return {"type": "http.response.body", "body": body.encode(), "more_body": True}


def _json(message):
    return json.loads(message["body"].partition(b"data: ")[2])


def test_thread_events_stand_before_the_content_that_follows_them_and_usage_is_corrected():
    usage = {"completion_tokens": 11, "total_tokens": 21, "prompt_tokens": 10}
    messages = [STREAM, _sse({"id": "i", "choices": [1]}), _sse({"id": "i", "choices": [2]}), _sse({"choices": [], "usage": usage})]  # fmt: skip
    token = Tokens(index=1, text="hi", token_ids=[1])
    sent = _weave(messages, [[], [], [FORKED, token], [ENDED]])
    chunks = [_json(m) for m in sent[1:]]
    assert chunks[0]["choices"] == [1]
    assert [e["index"] for e in chunks[1]["choices"][0]["delta"]["threads"]] == [0, 1]
    assert chunks[2]["choices"][0]["delta"]["threads"] == [{"index": 1, "content": "hi"}]
    assert chunks[3]["choices"] == [2]
    assert chunks[4]["usage"]["completion_tokens"] == 8
    assert chunks[4]["usage"]["forkjoin"]["num_threads"] == 2


def test_the_threads_of_a_vote_stand_between_the_role_and_the_text_of_the_winner():
    role = {"id": "i", "choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}
    winner = {"id": "i", "choices": [{"delta": {"content": "b"}, "finish_reason": "stop"}]}
    wrote = [Tokens(index=i, text=t, token_ids=[1]) for i, t in enumerate("ab")]
    ended = [ThreadEnded(index=i, reason=ThreadEnd.STOP, num_tokens=1) for i in range(2)]
    sent = _weave([STREAM, _sse(role), _sse(winner)], [[], [FORKED], [*wrote, *ended, ENDED]])
    deltas = [_json(m)["choices"][0]["delta"] for m in sent[1:]]
    assert (deltas[0], deltas[-1]) == (role["choices"][0]["delta"], {"content": "b"})
    assert [[t["index"] for t in delta["threads"]] for delta in deltas[1:-1]] == [[0, 1], [0], [1], [0], [1]]
    assert deltas[1]["threads"][1]["id"] == "th_k_1"


def test_a_whole_response_gets_its_threads_and_a_length_that_fits():
    start = START | {"headers": [(b"content-length", b"2")]}
    body = {"choices": [{"message": {"content": "x"}}], "usage": {"completion_tokens": 4, "total_tokens": 5}}
    message = {"type": "http.response.body", "body": json.dumps(body).encode()}
    sent = _weave([start, message], [[], [FORKED, ENDED]])
    assert dict(sent[0]["headers"])[b"content-length"] == str(len(sent[1]["body"])).encode()
    message = json.loads(sent[1]["body"])["choices"][0]["message"]
    assert message["content"] == "x"
    assert [t["title"] for t in message["threads"]] == ["x", "2"]


def test_without_a_fork_the_bytes_are_vllms_own_for_a_client_that_did_not_ask():
    message = {"type": "http.response.body", "body": b'{"output":  [], "usage": {}}'}
    assert _weave([START, message], [[], []], _unseen)[1]["body"] == message["body"]
    chunk = _sse({"type": "response.created", "sequence_number": 0, "response": {"usage": None}}, "x")
    assert _weave([STREAM, chunk], [[], []], _unseen)[1:] == [chunk]


NONE = {"num_threads": 0, "critical_path_tokens": 11, "total_tokens": 11}


def test_a_client_that_asked_is_told_that_a_chat_did_not_fork():
    usage = {"completion_tokens": 11, "total_tokens": 21}
    whole = {"choices": [{"message": {"content": "x"}}], "usage": usage}
    body = _weave([START, {"type": "http.response.body", "body": json.dumps(whole).encode()}], [[], []])[1]
    answer = json.loads(body["body"])
    assert answer["choices"][0]["message"] == {"content": "x", "threads": []}
    chunk = {"choices": [], "usage": usage}
    streamed = _json(_weave([STREAM, _sse({"id": "i", "choices": [1]}), _sse(chunk)], [[], [], []])[2])
    assert answer["usage"] == streamed["usage"] == usage | {"forkjoin": NONE}


def test_a_client_that_asked_is_told_that_a_response_did_not_fork():
    whole = {"output": [{"type": "message"}], "usage": {"output_tokens": 11, "total_tokens": 21}}
    message = {"type": "http.response.body", "body": json.dumps(whole).encode()}
    answer = json.loads(_weave([START, message], [[], []], ResponseThreads)[1]["body"])
    final = {"type": "response.completed", "sequence_number": 0, "response": whole}
    streamed = _json(_weave([STREAM, _sse(final, "response.completed")], [[], []], ResponseThreads)[1])
    assert answer == streamed["response"] == whole | {"usage": whole["usage"] | {"forkjoin": NONE}}


def test_an_event_is_not_kept_waiting_for_vllms_next_chunk():
    sent, queue = [], asyncio.Queue()

    async def run():
        shown = asyncio.Event()

        async def send(message):
            sent.append(message)
            if b"threads" in message.get("body", b""):
                shown.set()

        weaver = _weaver(send, queue, ChatThreads)
        pump = asyncio.create_task(weaver.pump())
        await weaver.send(STREAM)
        await weaver.send(_sse({"id": "i", "model": "m", "choices": [1]}))
        queue.put_nowait(FORKED)
        await asyncio.wait_for(shown.wait(), 120)
        pump.cancel()

    asyncio.run(run())
    chunk = _json(sent[-1])
    assert (chunk["id"], chunk["model"]) == ("i", "m")
    assert [t["index"] for t in chunk["choices"][0]["delta"]["threads"]] == [0, 1]


def test_an_event_that_comes_before_the_stream_can_show_it_waits_for_that():
    created = {"type": "response.created", "sequence_number": 0, "response": {}}
    messages = [STREAM, _sse(created), _sse(created | {"type": "response.in_progress", "sequence_number": 1})]
    sent = _weave(messages, [[], [FORKED], []], ResponseThreads)
    names = [line for m in sent[1:] for line in m["body"].decode().splitlines() if line.startswith("event: ")]
    assert b"response.created" in sent[1]["body"]
    assert b"response.in_progress" in sent[2]["body"]
    assert names == ["event: response.output_item.added", "event: response.content_part.added"] * 2


def test_a_client_that_did_not_ask_sees_no_threads_but_the_right_usage():
    usage = {"completion_tokens": 11, "total_tokens": 21}
    messages = [STREAM, _sse({"id": "i", "choices": [1]}), _sse({"choices": [], "usage": usage})]
    sent = _weave(messages, [[], [FORKED], [ENDED]], _unseen)
    assert not any(b"delta" in m.get("body", b"") for m in sent)
    assert _json(sent[-1])["usage"]["completion_tokens"] == 8


def test_the_usage_of_a_message_is_corrected_in_its_delta_and_has_no_total():
    message = {"type": "message_start", "message": {"usage": {"input_tokens": 2, "output_tokens": 0}}}
    delta = {"type": "message_delta", "usage": {"input_tokens": 2, "output_tokens": 11}}
    messages = [STREAM, _sse(message, "message_start"), _sse(delta, "message_delta")]
    sent = _weave(messages, [[], [], [FORKED, ENDED]], _unseen)
    assert sent[1] == messages[1]
    assert sent[2]["body"].startswith(b"event: message_delta\ndata: ")
    usage = _json(sent[2])["usage"]
    assert usage == {"input_tokens": 2, "output_tokens": 8, "forkjoin": usage["forkjoin"]}


def test_an_event_split_over_messages_is_put_together_and_the_end_passes_as_it_is():
    whole = b'data: {"id": "i"}\n\ndata: [DONE]\n\n'
    parts = [whole[:9], whole[9:25], whole[25:]]
    bodies = [{"type": "http.response.body", "body": p, "more_body": p != parts[-1]} for p in parts]
    sent = _weave([STREAM, *bodies], [[], [], [], []])
    assert b"".join(m["body"] for m in sent[1:]) == whole
    assert not sent[-1].get("more_body")


def test_an_error_of_vllm_is_not_corrected():
    message = {"type": "http.response.body", "body": b'{"error":  1}'}
    sent = _weave([START | {"status": 500}, message], [[], [FORKED, ENDED]])
    assert sent[1]["body"] == b'{"error":  1}'


def test_the_null_of_a_request_whose_client_has_hung_up_passes_as_it_is():
    null = {"type": "http.response.body", "body": b"null"}
    for present in (ChatThreads, ResponseThreads, _unseen):
        assert _weave([START, null], [[], [FORKED]], present) == [START, null]
