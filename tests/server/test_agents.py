"""``multi_agent`` on the real server, read by OpenAI's SDK: the classes of its beta know every field of ours."""

from __future__ import annotations

import json

import pytest
from openai import BadRequestError

from tests.server.asking import worksheet
from tests.server.reading import AGENT_EVENTS
from tests.server.unhurried import taking
from tests.unit.server.answer.test_agents import EVENTS, extras

pytestmark = pytest.mark.server

NUM_THREADS = 3
ASK = {
    "model": "abacus",
    "temperature": 0,
    "input": worksheet(NUM_THREADS).prompt,
    "max_output_tokens": 3000,
}
AGENTS = {"multi_agent": {"enabled": True}, "betas": ["responses_multi_agent=v1"]}
NAMES = [f"/root/{n}" for n in range(1, NUM_THREADS + 1)]


@pytest.fixture(scope="module")
def plain(client):
    return client.responses.create(**ASK)


@pytest.fixture(scope="module")
def whole(client):
    return client.beta.responses.create(**ASK, **AGENTS)


@pytest.fixture(scope="module")
def events(client):
    asked = ASK | AGENTS | {"stream": True, "extra_body": taking(0.002)}
    return list(client.beta.responses.create(**asked))


@pytest.fixture(scope="module")
def vllms(client):
    """The fields that no class of the SDK knows in a stream without agents."""
    return {name for event in client.responses.create(**ASK, stream=True) for name in extras(event)}


def _transcript(response):
    return "".join(part.text for item in response.output if item.type == "message" for part in item.content)


def _brief(response):
    return [
        (getattr(i, "action", i.type), i.agent.agent_name) for i in response.output if i.type != "message"
    ]


def test_the_transcript_is_the_answer_and_the_agents_fork_and_join(whole, plain):
    assert _transcript(whole) == plain.output_text
    agents = [(kind, name) for name in NAMES for kind in ("spawn_agent", "spawn_agent", "reasoning")]
    own = {"spawn_agent": "/root", "wait_agent": "/root"}
    told = [(kind, own.get(kind, name)) for kind, name in agents]
    assert _brief(whole) == [*told, ("wait_agent", "/root"), ("wait_agent", "/root")]
    texts = [i.content[0].text for i in whole.output if i.type == "reasoning"]
    assert [part.text for part in whole.output[-1].output] == texts
    assert all(text in plain.output_text for text in texts)
    assert whole.usage.output_tokens == plain.usage.output_tokens


def test_a_stream_ends_with_the_items_that_it_told_which_are_those_of_the_whole(events, whole):
    final = events[-1].response
    assert events[-1].type == "response.completed"
    assert _brief(final) == _brief(whole)
    done = {e.output_index: e.item for e in events if e.type == "response.output_item.done"}
    assert [done[n].id for n in range(len(final.output))] == [item.id for item in final.output]
    assert [e.sequence_number for e in events] == list(range(len(events)))


def test_each_event_has_its_agent_and_agents_speak_side_by_side(events):
    assert {e.agent.agent_name for e in events} == {"/root", *NAMES}
    deltas = [e for e in events if e.type == "response.reasoning_text.delta"]
    assert {e.agent.agent_name for e in deltas[: 3 * NUM_THREADS]} == set(NAMES)


@pytest.mark.parametrize("kind", AGENT_EVENTS)
def test_the_sdk_knows_every_field_of_an_event(events, vllms, kind):
    told = [event for event in events if event.type == kind]
    assert told
    for event in told:
        assert extras(event) <= vllms
        item = getattr(getattr(event, "item", None), "type", "")
        if event.agent.agent_name != "/root" or item.startswith("multi_agent_call"):
            assert extras(EVENTS.validate_python(event.to_dict())) == set()


def test_there_are_no_other_events_and_the_sdk_knows_every_field_of_the_whole(events, whole, vllms):
    assert {event.type for event in events} == set(AGENT_EVENTS)
    assert extras(whole) <= vllms


def test_no_more_agents_run_at_a_time_than_the_request_says(client, whole):
    one = {"multi_agent": {"enabled": True, "max_concurrent_subagents": 1}}
    stream = client.beta.responses.create(**ASK, **one, stream=True)
    said = [e.agent.agent_name for e in stream if e.type == "response.reasoning_text.delta"]
    assert [name for n, name in enumerate(said) if said[n - 1 : n] != [name]] == NAMES


VOTE = {"best_of": 8, "vote": r"total ends in (?P<result>\d)", "confidence": 1.0}


@pytest.fixture(scope="module")
def vote(client):
    """The events of a vote in waves: a later thread starts only if the first ones disagree."""
    asked = ASK | {"input": "a=17*23, b=4*5", "temperature": 0.5}
    return list(client.beta.responses.create(**asked, **AGENTS, extra_body={"forkjoin": VOTE}, stream=True))


def test_the_agents_of_a_vote_are_spawned_and_waited_for_also_those_that_it_does_without(vote):
    final = vote[-1].response
    names = [f"/root/{n}" for n in range(1, VOTE["best_of"] + 1)]
    assert vote[-1].type == "response.completed"
    assert {e.agent.agent_name for e in vote} == {"/root", *names}
    calls = [item for item in final.output if item.type == "multi_agent_call"]
    assert [call.action for call in calls] == ["spawn_agent"] * len(names) + ["wait_agent"]
    assert [json.loads(call.arguments)["agent_name"] for call in calls[:-1]] == names
    assert json.loads(calls[-1].arguments) == {"agent_names": names}

    agents = {i.agent.agent_name: i for i in final.output if i.type == "reasoning"}
    whole = [name for name in names if agents[name].status == "completed"]
    assert len(whole) >= 4  # which decide a vote of eight: the first of them wins a tie
    assert {i.status for i in agents.values()} == {"completed", "incomplete"}
    said = {e.agent.agent_name for e in vote if e.type == "response.reasoning_text.delta"}
    assert set(whole) <= said < set(names)
    assert any(_transcript(final) in agents[name].content[0].text for name in whole)


def test_the_sdk_knows_every_field_of_a_vote(vote, vllms):
    assert {event.type for event in vote} == set(AGENT_EVENTS)
    assert extras(vote[-1].response) <= vllms
    for event in vote:
        assert extras(event) <= vllms
        item = getattr(getattr(event, "item", None), "type", "")
        if event.agent.agent_name != "/root" or item.startswith("multi_agent_call"):
            assert extras(EVENTS.validate_python(event.to_dict())) == set()


def test_output_given_back_as_input_counts_as_the_transcript_alone(client, whole):
    def follow_up(items):
        history = [{"role": "user", "content": ASK["input"]}, *items, {"role": "user", "content": "a=1*2"}]
        asked = ASK | {"input": history, "max_output_tokens": 1}
        return client.beta.responses.create(**asked, **AGENTS).usage.input_tokens

    given = [item.to_dict() for item in whole.output]
    assert follow_up(given) == follow_up([item for item in given if item["type"] == "message"])


@pytest.mark.parametrize(
    "wrong", [{"multi_agent": {"enabled": "yes"}}, {"multi_agent": {"enabled": True}, "background": True}]
)
def test_a_wrong_request_is_refused_by_its_field(client, wrong):
    with pytest.raises(BadRequestError, match="multi_agent") as caught:
        client.responses.create(**ASK, extra_body=wrong)
    assert caught.value.param == "multi_agent"
