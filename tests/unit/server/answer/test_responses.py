from __future__ import annotations

import pytest

from forkjoin_scheduler.publish.events import Forked, NewThread, ThreadEnded, Tokens, Waiting
from forkjoin_server.answer.responses import ResponseThreads
from forkjoin_server.answer.threads import ThreadLog

FORKED = Forked(
    parent_index=-1,
    threads=[NewThread(index=0, number="1", title="x"), NewThread(index=1, number="2", title="")],
    shared_tokens=0,
)
LATER = Forked(parent_index=1, threads=[NewThread(index=2, number="2.1", title="y")], shared_tokens=0)
MESSAGE = {"type": "message", "id": "msg", "content": [{"type": "output_text", "text": "say: ab, cd"}]}
REASONING = {"type": "reasoning", "id": "rs", "content": [{"type": "reasoning_text", "text": "think ab cd"}]}


def _tokens(index, text):
    return Tokens(index=index, text=text, token_ids=[])


def _ended(index, reason="stop"):
    return ThreadEnded(index=index, reason=reason, num_tokens=7)


class Stream:
    """The events of one response as a client gets them: vLLM's and the threads'."""

    def __init__(self):
        self.log = ThreadLog("k")
        self.threads = ResponseThreads(self.log)
        self.sent = []
        self.own_number = 0

    def own(self, name, **more):
        self.sent += self.threads.pass_on(
            {"type": f"response.{name}", "sequence_number": self.own_number} | more
        )
        self.own_number += 1

    def fork(self, *events):
        for event in events:
            self.sent += self.threads.show(self.log.delta(event))

    def start(self):
        self.own("created", response={"output": []})
        self.own("in_progress", response={"output": []})

    def end(self, *output, status="completed"):
        self.own(status, response={"id": "r", "output": list(output)})
        return self.sent[-1]["response"]["output"]

    def of(self, index):
        """The events of the item at an output index, without the ``response.``."""
        return [e["type"].removeprefix("response.") for e in self.sent if e.get("output_index") == index]


@pytest.fixture
def stream():
    stream = Stream()
    stream.start()
    return stream


def test_threads_are_shown_once_the_response_is_in_progress():
    stream = Stream()
    assert not stream.threads.is_ready
    stream.own("created", response={"output": []})
    assert not stream.threads.is_ready
    stream.own("in_progress", response={"output": []})
    assert stream.threads.is_ready


def test_a_thread_is_a_whole_reasoning_item(stream):
    stream.fork(FORKED, _tokens(0, "a"), _tokens(1, "c"), _tokens(0, "b"), _ended(0))
    assert stream.of(0) == [
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
    ]
    added, done = (e["item"] for e in stream.sent if "item" in e and e["output_index"] == 0)
    assert (added["id"], added["status"], added["content"]) == ("th_k_0", "in_progress", [])
    assert added["thread"] == {"index": 0, "id": "th_k_0", "parent_id": "root", "title": "x"}
    assert done == added | {
        "status": "completed",
        "content": [{"type": "reasoning_text", "text": "ab"}],
        "thread": added["thread"] | {"finish_reason": "stop", "usage": {"completion_tokens": 7}},
    }


def test_an_event_inside_an_item_names_the_item(stream):
    stream.fork(FORKED, _tokens(1, "c"), _ended(1))
    inside = [e for e in stream.sent if e.get("output_index") == 1 and "item" not in e]
    assert {e["item_id"] for e in inside} == {"th_k_1"}
    assert {e["content_index"] for e in inside} == {0}


def test_what_a_thread_waits_for_is_told_by_a_delta_without_text(stream):
    stream.fork(FORKED, Waiting(index=1, waits_for="turn"), _tokens(1, "c"))
    waits, wrote = (e for e in stream.sent if e["type"] == "response.reasoning_text.delta")
    assert waits["thread"] == {"index": 1, "waits_for": {"type": "turn"}}
    assert (waits["item_id"], waits["delta"]) == (wrote["item_id"], "")


def test_numbers_rise_by_one_whoever_speaks(stream):
    stream.own("output_item.added", output_index=0, item=MESSAGE)
    stream.fork(FORKED, _tokens(0, "ab"))
    stream.own("output_text.delta", output_index=0, delta="x")
    stream.fork(_ended(0), _ended(1))
    stream.end(MESSAGE)
    assert [e["sequence_number"] for e in stream.sent] == list(range(len(stream.sent)))


def test_an_event_without_a_number_gets_none(stream):
    (event,) = stream.threads.pass_on({"type": "error", "message": "x"})
    assert event == {"type": "error", "message": "x"}


def test_vllms_items_make_room_for_threads_that_came_first(stream):
    stream.own("output_item.added", output_index=0, item=REASONING)
    stream.fork(FORKED, _ended(0), _ended(1))
    stream.own("output_item.done", output_index=0, item=REASONING)
    stream.own("output_item.added", output_index=1, item=MESSAGE)
    stream.own("output_text.delta", output_index=1, delta="x")
    stream.own("output_item.done", output_index=1, item=MESSAGE)
    indexes = [e["output_index"] for e in stream.sent if e["type"] == "response.output_item.added"]
    assert indexes == [0, 1, 2, 3]
    assert stream.of(3) == ["output_item.added", "output_text.delta", "output_item.done"]
    output = stream.end(REASONING, MESSAGE)
    assert [item["id"] for item in output] == ["rs", "th_k_0", "th_k_1", "msg"]


def test_a_later_forks_threads_come_behind_what_stands_there(stream):
    stream.fork(FORKED)
    stream.own("output_item.added", output_index=0, item=MESSAGE)
    stream.fork(LATER)
    output = stream.end(MESSAGE)
    assert [item["id"] for item in output] == ["th_k_0", "th_k_1", "msg", "th_k_2"]
    assert output[3]["thread"]["parent_id"] == "th_k_1"


def test_an_item_that_vllm_shows_at_the_end_only_comes_last(stream):
    stream.fork(FORKED, _ended(0), _ended(1))
    assert [item["id"] for item in stream.end(MESSAGE)] == ["th_k_0", "th_k_1", "msg"]


@pytest.mark.parametrize("status", ["completed", "incomplete", "failed"])
def test_threads_still_open_at_the_end_are_closed_as_incomplete(stream, status):
    stream.fork(FORKED, _tokens(1, "c"), _ended(0))
    output = stream.end(status=status)
    assert [item["status"] for item in output] == ["completed", "incomplete"]
    assert stream.of(1)[-3:] == ["reasoning_text.done", "content_part.done", "output_item.done"]
    assert stream.of(0).count("output_item.done") == 1
    assert stream.sent[-1]["type"] == f"response.{status}"


def test_a_thread_that_was_cut_is_incomplete(stream):
    stream.fork(FORKED, _ended(0, "length"))
    assert stream.sent[-1]["item"]["status"] == "incomplete"


def test_the_final_items_are_those_that_were_done(stream):
    stream.fork(FORKED, _tokens(0, "ab"), _ended(1), _tokens(0, "c"), _ended(0))
    output = stream.end()
    done = {e["output_index"]: e["item"] for e in stream.sent if e["type"] == "response.output_item.done"}
    assert dict(enumerate(output)) == done


def test_what_vllm_said_is_not_changed(stream):
    stream.fork(FORKED)
    event = {"type": "response.completed", "sequence_number": 2, "response": {"output": [MESSAGE]}}
    stream.threads.pass_on(event)
    assert event == {"type": "response.completed", "sequence_number": 2, "response": {"output": [MESSAGE]}}


def _whole(output, texts=("ab", "cd")):
    log = ThreadLog("k")
    log.delta(FORKED)
    for index, text in enumerate(texts):
        log.delta(_tokens(index, text))
    return [item["id"] for item in ResponseThreads(log).whole({"output": output})["output"]]


@pytest.mark.parametrize(
    ("output", "ids"),
    [
        ([MESSAGE], ["msg", "th_k_0", "th_k_1"]),
        ([REASONING, MESSAGE], ["rs", "th_k_0", "th_k_1", "msg"]),
        ([REASONING | {"content": []}, MESSAGE], ["rs", "msg", "th_k_0", "th_k_1"]),
        ([{"type": "function_call", "id": "fc"}, MESSAGE | {"content": None}], ["fc", "th_k_0", "th_k_1", "msg"]),
        ([], ["th_k_0", "th_k_1"]),
    ],
    ids=["message", "fork_in_reasoning", "fork_in_message", "text_nowhere", "no_items"],
)  # fmt: skip
def test_a_whole_response_has_threads_behind_the_item_that_holds_their_text(output, ids):
    assert _whole(output) == ids
