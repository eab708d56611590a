"""Threads on ``/v1/responses``, through the Python SDK and as they stand on the wire."""

from __future__ import annotations

import json

import httpx
import openai
import pytest

from tests.server.asking import worksheet
from tests.server.unhurried import taking

pytestmark = pytest.mark.server

NUM_THREADS = 3
SHEET = worksheet(NUM_THREADS)
ASK = {"model": "abacus", "temperature": 0, "input": SHEET.prompt, "max_output_tokens": 3000}
THREADS = {"forkjoin": {"include_threads": True}}


@pytest.fixture(scope="module")
def chat(client):
    """The same question on chat completions, without threads."""
    messages = [{"role": "user", "content": SHEET.prompt}]
    return client.chat.completions.create(model="abacus", temperature=0, messages=messages, max_tokens=3000)


@pytest.fixture(scope="module")
def whole(client):
    return client.responses.create(**ASK, extra_body=THREADS)


@pytest.fixture(scope="module")
def events(client):
    return list(client.responses.create(**ASK, stream=True, extra_body=THREADS | taking(0.002)))


def _transcript(texts):
    joined = "".join(f"<Thread>\n{i}:{text}" for i, text in enumerate(texts, 1))
    return f"</Outlines>\n{joined}\n</Parallel>"


def _shown(response):
    """What a response says of its items, without the ids that differ between two requests."""
    items = [item.to_dict() for item in response.output]
    for item in items:
        item.pop("id")
        item.get("thread", {}).pop("id", None)
    return items


def test_output_text_is_the_transcript_and_its_threads_are_reasoning_items(whole, chat):
    assert whole.output_text == chat.choices[0].message.content
    message, *threads = whole.output
    assert message.type == "message"
    assert [(t.type, t.status, t.thread["index"]) for t in threads] == [
        ("reasoning", "completed", i) for i in range(NUM_THREADS)
    ]
    assert [t.thread["title"] for t in threads] == [p.text for p in SHEET.long_problems]
    assert _transcript(t.content[0].text for t in threads) in whole.output_text


def test_usage_is_chats(whole, chat, events):
    for usage in (whole.usage, events[-1].response.usage):
        assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (
            chat.usage.prompt_tokens,
            chat.usage.completion_tokens,
            chat.usage.total_tokens,
        )
        assert usage.forkjoin == chat.usage.forkjoin


def test_events_are_numbered_without_a_gap(events):
    assert [e.sequence_number for e in events] == list(range(len(events)))


def test_items_are_indexed_in_the_order_in_which_they_appear(events):
    added = [e for e in events if e.type == "response.output_item.added"]
    assert [e.output_index for e in added] == list(range(1 + NUM_THREADS))
    ids = {e.output_index: e.item.id for e in added}
    assert all(ids[e.output_index] == e.item_id for e in events if hasattr(e, "item_id"))
    assert [item.id for item in events[-1].response.output] == list(ids.values())


def test_the_plain_loop_reads_the_transcript_and_every_thread(events, chat):
    said: dict[int, str] = {}
    for event in events:
        if event.type in ("response.output_text.delta", "response.reasoning_text.delta"):
            said[event.output_index] = said.get(event.output_index, "") + event.delta
    assert said[0] == chat.choices[0].message.content
    assert _transcript(said[i] for i in range(1, 1 + NUM_THREADS)) in said[0]
    done = {e.output_index: e.text for e in events if e.type == "response.reasoning_text.done"}
    assert done == {i: text for i, text in said.items() if i > 0}


def test_threads_speak_side_by_side(events):
    speakers = [e.output_index for e in events if e.type == "response.reasoning_text.delta"]
    first_end = len(speakers) - 1 - speakers[::-1].index(1)
    assert {2, 3} <= set(speakers[:first_end])


def test_the_helper_accumulates_and_ends_with_what_is_not_streamed(client, whole):
    snapshots = []
    with client.responses.stream(**ASK, extra_body=THREADS) as stream:
        for event in stream:
            if event.type == "response.output_text.delta":
                snapshots.append(event.snapshot)
        final = stream.get_final_response()
    assert snapshots[-1] == final.output_text == whole.output_text
    threads = [item for item in _shown(final) if item["type"] == "reasoning"]
    assert threads == [item for item in _shown(whole) if item["type"] == "reasoning"]


def test_threads_cut_by_the_budget_are_incomplete_and_closed(client):
    with client.responses.stream(**(ASK | {"max_output_tokens": 220}), extra_body=THREADS) as stream:
        events = list(stream)
    done = [e.item for e in events if e.type == "response.output_item.done"]
    final = events[-1].response  # of response.completed, or since vLLM 0.33 response.incomplete
    assert final.incomplete_details.reason == "max_output_tokens"
    assert final.usage.output_tokens == 220
    threads = [item for item in final.output if item.type == "reasoning"]
    assert [(t.status, t.thread["finish_reason"]) for t in threads] == [
        ("incomplete", "length")
    ] * NUM_THREADS
    assert {item.id for item in done} == {item.id for item in final.output}


def test_without_asking_nothing_speaks_of_threads_and_usage_is_right(client, server, chat):
    with httpx.stream("POST", f"{server}/v1/responses", json=ASK | {"stream": True}, timeout=300) as response:
        data = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
    assert not any("reasoning" in json.loads(line)["type"] for line in data)
    final = json.loads(data[-1])["response"]
    assert [item["type"] for item in final["output"]] == ["message"]
    assert final["usage"]["output_tokens"] == chat.usage.completion_tokens


def test_output_given_back_as_input_counts_as_the_transcript_alone(client, whole):
    def follow_up(items):
        history = [{"role": "user", "content": SHEET.prompt}, *items, {"role": "user", "content": "a=2*3"}]
        return client.responses.create(model="abacus", temperature=0, input=history, max_output_tokens=1)

    given = [item.to_dict() for item in whole.output]
    assert follow_up(given).usage.input_tokens == follow_up(given[:1]).usage.input_tokens


def test_threads_in_the_background_are_refused(client):
    with pytest.raises(openai.BadRequestError, match="background"):
        client.responses.create(**ASK, background=True, extra_body=THREADS)
