"""Forks that a request asks for by itself, through the real SDK."""

from __future__ import annotations

import re

import openai
import pytest

pytestmark = pytest.mark.server

ASK = {"model": "abacus", "messages": [{"role": "user", "content": "a=17*23, b=4*5"}]}
SHOWN = {"include_threads": True}
BRANCHES = {"branches": [{"title": "first", "text": "a="}, {"text": "b="}], "closing": "\ntotal"}
VOTE = {"best_of": 3, "vote": r"total ends in (?P<result>\d)"}


def _ask(client, forkjoin, **more):
    return client.chat.completions.create(**(ASK | more), extra_body={"forkjoin": SHOWN | forkjoin})


def test_branches_are_threads_with_the_titles_that_they_were_given(client):
    answer = _ask(client, BRANCHES, temperature=0, max_tokens=300)
    assert [t["title"] for t in answer.choices[0].message.threads] == ["first", "2"]
    assert answer.usage.completion_tokens == answer.usage.forkjoin["total_tokens"] <= 300


def test_the_best_of_several_is_one_answer_whose_usage_counts_all(client):
    answer = _ask(client, VOTE, temperature=0.5)
    (choice,) = answer.choices
    forkjoin, threads = answer.usage.forkjoin, choice.message.threads
    winner = threads[forkjoin["vote"]["index"]]
    assert choice.message.content in winner["content"]
    assert choice.message.content.endswith(f"total ends in {forkjoin['vote']['result']}")
    assert answer.usage.completion_tokens == sum(t["usage"]["completion_tokens"] for t in threads)
    assert forkjoin["critical_path_tokens"] == max(t["usage"]["completion_tokens"] for t in threads)
    assert forkjoin["num_threads"] == 3


def test_a_vote_names_the_threads_that_it_did_not_wait_for_and_counts_those_that_ran(client):
    answer = _ask(client, VOTE | {"best_of": 8, "confidence": 1.0}, temperature=0.5)
    (choice,) = answer.choices
    forkjoin, threads = answer.usage.forkjoin, choice.message.threads
    reasons = {reason: [] for reason in ("cut", "not_started", "pruned")}
    for thread in threads:
        reasons.get(thread["finish_reason"], []).append(thread["index"])
    assert len(threads) == 8
    assert {name: forkjoin["vote"][name] for name in reasons} == reasons
    assert forkjoin["num_threads"] == 8 - len(reasons["not_started"])
    assert all(threads[i]["usage"]["completion_tokens"] == 0 for i in reasons["not_started"])
    assert answer.usage.completion_tokens == sum(t["usage"]["completion_tokens"] for t in threads)
    assert choice.message.content in threads[forkjoin["vote"]["index"]]["content"]


def test_a_pruning_policy_of_the_server_is_a_400_where_it_has_none(client):
    with pytest.raises(
        openai.BadRequestError, match=r"forkjoin\.prune: expected a server with a --prune-policy"
    ):
        _ask(client, VOTE | {"prune": "own"})


def test_a_vote_without_a_result_is_told_as_one_streamed(client):
    options = SHOWN | {"include_usage": True}
    *_, last = _ask(client, VOTE | {"vote": "no such text"}, stream=True, stream_options=options)
    assert last.usage.forkjoin["vote"]["result"] is None


@pytest.mark.parametrize(
    "more",
    [
        {"extra": {"prompt_logprobs": 1}},
        {"extra": {"echo": True}},
    ],
    ids=["prompt_logprobs", "echo"],
)
@pytest.mark.parametrize("asked", [BRANCHES, VOTE], ids=["branches", "best_of"])
def test_a_fork_that_cannot_be_is_a_400_that_names_it(client, asked, more):
    more = dict(more)
    body = {"forkjoin": asked} | more.pop("extra", {})
    with pytest.raises(openai.BadRequestError, match=rf"forkjoin\.{next(iter(asked))}"):
        client.chat.completions.create(**ASK, **more, extra_body=body)


# ---- structured output, without a reasoning parser --------------------------------------------


def test_branches_in_a_structured_answer_are_a_400_that_says_what_to_do(client):
    with pytest.raises(openai.BadRequestError, match=r"forkjoin\.branches: .*structured: answer"):
        _structured(client, BRANCHES)


DIGIT = {"structured_outputs": {"regex": "[0-9]"}}


def _structured(client, forkjoin, **more):
    body = DIGIT | {"forkjoin": SHOWN | forkjoin}
    return client.chat.completions.create(**(ASK | more), temperature=0, extra_body=body)


def test_an_answer_begins_where_the_dialect_says(client):
    content = "a=482*731, b=9047*36"
    messages = [{"role": "user", "content": content}]
    answer = _structured(client, {"structured": "answer"}, messages=messages)
    reasoning, _, digit = answer.choices[0].message.content.partition("</think>")
    assert re.fullmatch("[0-9]", digit)
    assert reasoning.count("<Thread>") == len(answer.choices[0].message.threads) == 2
    plain = _ask(client, {}, messages=messages, temperature=0)
    assert plain.choices[0].message.content.startswith(reasoning)


def test_without_it_the_grammar_holds_from_the_first_token(client):
    answer = _structured(client, {})
    assert re.fullmatch("[0-9]", answer.choices[0].message.content)
    assert answer.choices[0].message.threads == []


def test_an_answer_begins_behind_a_closing_of_the_requests_own(client):
    answer = _structured(client, BRANCHES | {"structured": "answer", "max_tokens_per_thread": 20})
    assert re.search(r"\ntotal[0-9]\Z", answer.choices[0].message.content)
    assert len(answer.choices[0].message.threads) == 2


def test_each_thread_of_a_vote_obeys(client):
    answer = _structured(client, VOTE | {"vote": "[0-9]"})
    assert re.fullmatch("[0-9]", answer.choices[0].message.content)
    assert [len(t["content"]) for t in answer.choices[0].message.threads] == [1, 1, 1]
