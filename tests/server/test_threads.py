"""The rules of ``delta.threads`` (the wire format), checked on what the server really sends."""

from __future__ import annotations

import json
from collections import Counter

import httpx
import pytest

from tests.server.asking import chat, worksheet

pytestmark = pytest.mark.server

NUM_THREADS = 4
SHEET = worksheet(NUM_THREADS)
ASK = chat(SHEET)
STREAM = {"stream": True, "stream_options": {"include_threads": True, "include_usage": True}}


def _events(server: str, **more) -> list[str]:
    """The data of each server-sent event, as it stands on the wire."""
    with httpx.stream("POST", f"{server}/v1/chat/completions", json=ASK | more, timeout=300) as response:
        lines = [line for line in response.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines), "chat streams have no event names"
    return [line.removeprefix("data: ") for line in lines]


@pytest.fixture(scope="module")
def chunks(server):
    *events, done = _events(server, **STREAM)
    assert done == "[DONE]"
    return [json.loads(event) for event in events]


@pytest.fixture(scope="module")
def deltas(chunks):
    return [c["choices"][0]["delta"] for c in chunks if c["choices"]]


@pytest.fixture(scope="module")
def entries(deltas):
    return [entry for delta in deltas for entry in delta.get("threads", [])]


def test_all_threads_of_the_fork_are_announced_together_in_increasing_order(deltas):
    announced = next(d["threads"] for d in deltas if "threads" in d)
    assert [e["index"] for e in announced] == list(range(NUM_THREADS))
    assert [e["title"] for e in announced] == [p.text for p in SHEET.long_problems]
    assert len({e["id"] for e in announced}) == NUM_THREADS
    assert {e["parent_id"] for e in announced} == {"root"}


def test_only_content_repeats(entries):
    seen = Counter((e["index"], key) for e in entries for key in e if key not in ("index", "content"))
    once = ("id", "parent_id", "title", "finish_reason", "usage")
    assert seen == Counter({(i, key): 1 for i in range(NUM_THREADS) for key in once})


def test_a_threads_contents_are_its_text_in_the_transcript(deltas, entries):
    content = "".join(d.get("content") or "" for d in deltas)
    texts = ["".join(e.get("content", "") for e in entries if e["index"] == i) for i in range(NUM_THREADS)]
    joined = "".join(f"<Thread>\n{i}:{text}" for i, text in enumerate(texts, 1))
    assert f"</Outlines>\n{joined}\n</Parallel>" in content


def test_a_thread_says_nothing_after_its_end(entries):
    ended: set[int] = set()
    for entry in entries:
        assert entry["index"] not in ended
        if "finish_reason" in entry:
            ended.add(entry["index"])
    assert ended == set(range(NUM_THREADS))


def test_every_chunk_but_the_usage_has_one_choice_and_one_ends_the_answer(chunks):
    *rest, last = chunks
    assert last["choices"] == []
    assert [[choice["index"] for choice in c["choices"]] for c in rest] == [[0]] * len(rest)
    assert Counter(c["choices"][0]["finish_reason"] for c in rest) == {None: len(rest) - 1, "stop": 1}


def test_the_usage_chunk_counts_like_the_answer_that_is_not_streamed(chunks, client):
    whole = client.chat.completions.create(**ASK)
    assert chunks[-1]["usage"]["completion_tokens"] == whole.usage.completion_tokens
    assert chunks[-1]["usage"]["forkjoin"] == whole.usage.forkjoin
    assert whole.usage.forkjoin["num_threads"] == NUM_THREADS


def test_each_generated_token_is_counted_once(client, server):
    whole = client.chat.completions.create(**ASK)
    ids = {}
    for name, text in {"transcript": whole.choices[0].message.content, "header": "<Thread>\n1:"}.items():
        answer = httpx.post(
            f"{server}/tokenize", json={"prompt": text, "add_special_tokens": False}, timeout=60
        )
        ids[name] = answer.json()["count"]
    # the engine wrote the headers and the two newlines around them; the model also wrote the last,
    # the end of sequence, which the transcript does not show
    assert whole.usage.completion_tokens == ids["transcript"] - NUM_THREADS * ids["header"] - 2 + 1


def test_message_threads_hold_what_the_stream_said(client, entries):
    answer = client.chat.completions.create(**ASK, extra_body={"forkjoin": {"include_threads": True}})
    streamed = [{"index": i, "content": ""} for i in range(NUM_THREADS)]
    for entry in entries:
        content = streamed[entry["index"]]["content"] + entry.get("content", "")
        streamed[entry["index"]] |= entry | {"content": content}
    for thread in [*streamed, *answer.choices[0].message.threads]:
        del thread["id"]
    assert answer.choices[0].message.threads == streamed


def test_without_asking_no_chunk_speaks_of_threads(server):
    assert not any('"threads"' in event for event in _events(server, stream=True))


def test_threads_cut_by_max_tokens_still_finish_once(server):
    entries = []
    for event in _events(server, **STREAM, max_tokens=220)[:-1]:
        chunk = json.loads(event)
        entries += chunk["choices"][0]["delta"].get("threads", []) if chunk["choices"] else []
    ends = [(e["index"], e["finish_reason"]) for e in entries if "finish_reason" in e]
    assert sorted(ends) == [(i, "length") for i in range(NUM_THREADS)]


def test_the_helper_accumulates_the_threads(client, entries):
    helper = client.chat.completions.stream(**ASK, stream_options={"include_threads": True})
    with helper as stream:
        message = stream.get_final_completion().choices[0].message
    for thread in message.model_extra["threads"]:
        said = [e for e in entries if e["index"] == thread["index"]]
        assert thread["content"] == "".join(e.get("content", "") for e in said)
        assert thread["title"] == said[0]["title"]
