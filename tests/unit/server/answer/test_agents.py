"""Threads as OpenAI's beta for several agents tells them: each event is one that its SDK knows whole."""

from __future__ import annotations

import json

import pytest
from openai.types.beta import BetaResponseOutputItem, BetaResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from forkjoin_scheduler.errors import BadRequestOptions
from forkjoin_scheduler.publish.events import Waiting
from forkjoin_server.answer.agents import AgentThreads, take, without_calls
from forkjoin_server.answer.threads import ThreadLog
from forkjoin_server.routes import CHAT, RESPONSES
from tests.unit.server.answer.test_responses import FORKED, LATER, Stream, _ended, _tokens

MESSAGE = {
    "type": "message",
    "id": "msg",
    "role": "assistant",
    "status": "completed",
    "content": [{"type": "output_text", "text": "say: ab, cd", "annotations": []}],
}
EVENTS = TypeAdapter(BetaResponseStreamEvent)
ITEMS = TypeAdapter(BetaResponseOutputItem)


@pytest.fixture
def stream():
    stream = Stream()
    stream.threads = AgentThreads(stream.log, has_extras=False)
    stream.start()
    return stream


def extras(value):
    """Fields that no class knows, however deep."""
    found = set()
    for part in value if isinstance(value, list) else [value]:
        if isinstance(part, BaseModel):
            found |= set(part.model_extra or ())
            for name in type(part).model_fields:
                found |= extras(getattr(part, name))
    return found


def brief(item):
    """What an item is, and whose."""
    return (item.get("action", item["type"]), item["type"].endswith("output"), item["agent"]["agent_name"])


def run(stream):
    """A fork of two threads, the second of which forks again, and both joins."""
    waits = Waiting(index=1, waits_for="turn")
    stream.fork(
        FORKED, waits, _tokens(0, "ab"), LATER, _tokens(2, "inner"), _ended(2), _tokens(1, "cd"), _ended(1)
    )
    stream.fork(_ended(0))
    return stream.end(MESSAGE)


def test_a_fork_spawns_an_agent_a_thread_and_a_join_waits_for_all(stream):
    assert [brief(item) for item in run(stream)] == [
        ("spawn_agent", False, "/root"),
        ("spawn_agent", True, "/root"),
        ("reasoning", False, "/root/1"),
        ("spawn_agent", False, "/root"),
        ("spawn_agent", True, "/root"),
        ("reasoning", False, "/root/2"),
        ("spawn_agent", False, "/root/2"),
        ("spawn_agent", True, "/root/2"),
        ("reasoning", False, "/root/2/1"),
        ("wait_agent", False, "/root/2"),
        ("wait_agent", True, "/root/2"),
        ("wait_agent", False, "/root"),
        ("wait_agent", True, "/root"),
        ("message", False, "/root"),
    ]


def test_a_call_says_whom_it_starts_and_its_output_what_they_wrote(stream):
    output = run(stream)
    assert json.loads(output[0]["arguments"]) == {"agent_name": "/root/1", "message": "x"}
    assert json.loads(output[11]["arguments"]) == {"agent_names": ["/root/1", "/root/2"]}
    assert [part["text"] for part in output[12]["output"]] == ["ab", "cd"]
    assert [output[n]["call_id"] == output[n + 1]["call_id"] for n in (0, 3, 6, 9, 11)] == [True] * 5
    ids = [item["id"] for item in output]
    assert len(set(ids)) == len(ids)


def test_each_event_is_one_that_the_sdk_knows_with_no_field_left_over(stream):
    run(stream)
    ours = [event for event in stream.sent if "response" not in event]
    kinds = {event["type"] for event in ours}
    assert kinds == {
        f"response.{name}"
        for name in (
            "output_item.added",
            "output_item.done",
            "content_part.added",
            "content_part.done",
            "reasoning_text.delta",
            "reasoning_text.done",
        )
    }
    for event in ours:
        assert extras(EVENTS.validate_python(event)) == set(), event
        assert event["agent"]["agent_name"].startswith("/root")


def test_events_are_numbered_and_indexed_without_a_gap(stream):
    run(stream)
    assert [event["sequence_number"] for event in stream.sent] == list(range(len(stream.sent)))
    added = [e["output_index"] for e in stream.sent if e["type"] == "response.output_item.added"]
    assert added == list(range(len(added)))


def test_a_stop_string_that_ends_all_threads_at_once_joins_them_once(stream):
    stream.fork(FORKED, _tokens(0, "ab"), _tokens(1, "cd"))
    stream.sent += stream.threads.show(stream.log.cut_open())
    ids = [item["id"] for item in stream.end(MESSAGE)]
    assert len(set(ids)) == len(ids)
    assert sum("wait_agent" in i for i in ids) == 2  # the call and its output


def test_an_answer_that_is_not_streamed_has_the_same_items(stream):
    simple = [FORKED, _tokens(0, "ab"), _tokens(1, "cd"), _ended(0), _ended(1)]
    stream.fork(*simple)
    streamed = stream.end(MESSAGE)
    log = ThreadLog("k")
    for event in simple:
        log.delta(event)
    usage = {"output_tokens": 3, "forkjoin": {"num_threads": 2}}
    response = {"output": [MESSAGE], "usage": usage}
    whole = AgentThreads(log, has_extras=False).whole(response)
    by_id = {item["id"]: item for item in streamed}
    assert {item["id"]: item for item in whole["output"]} == by_id
    assert [brief(i) for i in whole["output"][1:]] == [brief(i) for i in streamed if i["type"] != "message"]
    assert whole["usage"] == {"output_tokens": 3}
    assert response["usage"] == usage
    for item in whole["output"]:
        assert extras(ITEMS.validate_python(item)) == set()


@pytest.mark.parametrize("reason", ["length", "cut", "not_started", "pruned", "client_cancelled"])
def test_an_agent_that_did_not_come_to_its_end_is_incomplete_as_the_sdk_knows_it(stream, reason):
    stream.fork(FORKED, _tokens(0, "ab"), _ended(0), _ended(1, reason))
    output = stream.end(MESSAGE)
    whole, cut = (i for i in output if i["type"] == "reasoning")
    assert [(i["agent"]["agent_name"], i["status"]) for i in (whole, cut)] == [
        ("/root/1", "completed"),
        ("/root/2", "incomplete"),
    ]
    assert [part["text"] for part in output[-2]["output"]] == ["ab", ""]
    for item in output:
        assert extras(ITEMS.validate_python(item)) == set()
    for event in stream.sent:
        assert "response" in event or extras(EVENTS.validate_python(event)) == set()


def test_a_nested_fork_stands_within_its_own_in_an_answer_that_is_not_streamed():
    log = ThreadLog("k")
    for event in [FORKED, LATER, _ended(2), _ended(0), _ended(1)]:
        log.delta(event)
    output = AgentThreads(log, has_extras=False).whole({"output": []})["output"]
    names = [item["agent"]["agent_name"] for item in output if item["type"] == "reasoning"]
    assert names == ["/root/1", "/root/2", "/root/2/1"]
    assert [brief(item) for item in output if item["type"] == "multi_agent_call"][-2:] == [
        ("wait_agent", False, "/root/2"),
        ("wait_agent", False, "/root"),
    ]


def test_who_asks_for_threads_too_gets_what_no_class_knows():
    log = ThreadLog("k")
    for event in [FORKED, _ended(0), _ended(1)]:
        log.delta(event)
    whole = AgentThreads(log, has_extras=True).whole({"output": [], "usage": {"forkjoin": {}}})
    assert [item["thread"]["index"] for item in whole["output"] if item["type"] == "reasoning"] == [0, 1]
    assert whole["usage"] == {"forkjoin": {}}


# ---- the request -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [{}, {"multi_agent": None}, {"multi_agent": {"enabled": False, "max_concurrent_subagents": 3}}],
    ids=["none", "null", "off"],
)
def test_who_does_not_ask_for_agents_gets_none(given):
    assert take(given, RESPONSES) == ({}, None)


LIMITED = {"enabled": True, "max_concurrent_subagents": 3}


@pytest.mark.parametrize(
    ("given", "forkjoin", "has_extras"),
    [
        ({"multi_agent": {"enabled": True}}, {}, False),
        ({"multi_agent": LIMITED}, {"max_threads_running": 3}, False),
        (
            {"multi_agent": LIMITED, "forkjoin": {"max_forks": 2}},
            {"max_threads_running": 3, "max_forks": 2},
            False,
        ),
        (
            {"multi_agent": LIMITED, "forkjoin": {"max_threads_running": 1, "include_threads": True}},
            {"max_threads_running": 1},
            True,
        ),
    ],
    ids=["plain", "limited", "with_options", "with_threads"],
)
def test_the_field_is_taken_out_and_its_limit_is_ours(given, forkjoin, has_extras):
    before = json.dumps(given)
    body, present = take(given, RESPONSES)
    assert body == {"forkjoin": forkjoin | {"include_threads": True}}
    log = ThreadLog("k")
    log.delta(FORKED)
    (item, *_) = [i for i in present(log).whole({"output": []})["output"] if i["type"] == "reasoning"]
    assert ("thread" in item) is has_extras
    assert json.dumps(given) == before


@pytest.mark.parametrize("shown", [False, True])
def test_what_stream_options_say_of_threads_hides_no_agent(shown):
    given = {"multi_agent": {"enabled": True}, "stream_options": {"include_threads": shown}}
    body, present = take(given, RESPONSES)
    assert body["stream_options"] == {"include_threads": True}
    log = ThreadLog("k")
    log.delta(FORKED)
    (item, *_) = [i for i in present(log).whole({"output": []})["output"] if i["type"] == "reasoning"]
    assert ("thread" in item) is shown


@pytest.mark.parametrize(
    ("field", "message"),
    [
        (3, "multi_agent: Input should be a valid dictionary"),
        ({"enabled": "yes"}, "multi_agent.enabled: Input should be a valid boolean"),
        (
            {"enabled": True, "max_concurrent_subagents": 0},
            "multi_agent.max_concurrent_subagents: .* or equal to 1",
        ),
        (
            {"enabled": True, "max_concurrent_subagents": 1 << 31},
            "multi_agent.max_concurrent_subagents: .* less than",
        ),
        (
            {"enabled": True, "depth": 1},
            "multi_agent.depth: unknown key: expected enabled",
        ),
    ],
)
def test_a_wrong_field_is_refused_by_its_name(field, message):
    with pytest.raises(BadRequestOptions, match=message) as refused:
        take({"multi_agent": field}, RESPONSES)
    assert refused.value.field == "multi_agent"


def test_agents_in_the_background_are_refused():
    with pytest.raises(BadRequestOptions, match="multi_agent: expected background = false") as refused:
        take({"multi_agent": {"enabled": True}, "background": True}, RESPONSES)
    assert refused.value.field == "multi_agent"


def test_other_routes_do_not_know_the_field():
    body = {"multi_agent": 3}
    assert take(body, CHAT) == (body, None)


def test_calls_given_back_as_input_are_left_out(stream):
    items = [{"role": "user", "content": "x"}, *run(stream)]
    assert [i.get("type") for i in without_calls(items)] == [None, *["reasoning"] * 3, "message"]
