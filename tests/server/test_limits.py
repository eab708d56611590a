"""Limits and refusals of one request, and what is left when it ends early."""

from __future__ import annotations

import http.client
import json
import time
from contextlib import closing

import httpx
import openai
import pytest

from tests.server.reading import IDLE_S, metrics, wait_until_idle
from tests.server.unhurried import taking

pytestmark = pytest.mark.server

ASK = {
    "model": "abacus",
    "temperature": 0,
    "messages": [{"role": "user", "content": "a=482*731, b=7*8, c=907*36"}],
    "max_tokens": 2000,
}
FORKS = "forkjoin:forks_total"
GENERATED = "vllm:generation_tokens_total"


def _ask(client, *, forkjoin=None, **more):
    return client.chat.completions.create(**(ASK | more), extra_body={"forkjoin": forkjoin or {}})


def _wait_until_idle(server: str, client) -> None:
    wait_until_idle(server, lambda: client.completions.create(model="abacus", prompt="x", max_tokens=1))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"max_thread": 1}, "forkjoin.max_thread"),
        ({"max_threads_per_fork": 0}, "forkjoin.max_threads_per_fork"),
        ({"enabled": "yes"}, "forkjoin.enabled"),
        ([], "forkjoin: expected an object"),
        ("{}", "forkjoin: expected an object, got str"),
    ],
    ids=["unknown", "too_small", "wrong_type", "list", "text"],
)
def test_bad_options_are_a_400_that_names_them(client, options, named):
    with pytest.raises(openai.BadRequestError, match=named) as caught:
        client.chat.completions.create(**ASK, extra_body={"forkjoin": options})
    assert caught.value.status_code == 400


def test_bad_options_are_not_run(client, server):
    before = metrics(server)["vllm:prompt_tokens_total"]
    with pytest.raises(openai.BadRequestError, match="bogus"):
        _ask(client, forkjoin={"bogus": 1})
    assert metrics(server)["vllm:prompt_tokens_total"] == before


def test_a_body_that_is_no_object_is_vllms_to_refuse(server):
    for body in (b"{", b"[]", b"\xff"):
        answer = httpx.post(
            f"{server}/v1/chat/completions",
            content=body,
            headers={"content-type": "application/json"},
            timeout=60,
        )
        assert answer.status_code in (400, 422), answer.text


def test_threads_with_two_choices_are_refused(client):
    with pytest.raises(openai.BadRequestError, match="include_threads"):
        _ask(client, forkjoin={"include_threads": True}, n=2)


@pytest.mark.parametrize("limit", [{"max_threads_per_fork": 1}, {"max_forks": 0}], ids=["threads", "forks"])
def test_over_a_limit_the_model_carries_on_without_a_fork(client, server, limit):
    before = metrics(server)
    answer = _ask(client, forkjoin=limit)
    after = metrics(server)
    assert after["forkjoin:forks_total"] == before["forkjoin:forks_total"]
    assert after["forkjoin:malformed_outputs_total"] == before.get("forkjoin:malformed_outputs_total", 0) + 1
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.content.count("<Thread>") == 2


@pytest.mark.parametrize("num_tokens", [100, 200], ids=["early", "mid_thread"])
@pytest.mark.parametrize("limit", ["max_tokens", "max_total_tokens"])
def test_in_a_fork_the_budget_of_tokens_is_spent_to_the_last_and_not_exceeded(client, limit, num_tokens):
    more = {limit: num_tokens} if limit == "max_tokens" else {"forkjoin": {limit: num_tokens}}
    answer = _ask(client, **more)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == num_tokens


def test_a_thread_over_its_budget_ends_the_answer_and_is_counted(client, server):
    name = "forkjoin:malformed_outputs_total"
    before = metrics(server).get(name, 0)
    answer = _ask(client, forkjoin={"max_tokens_per_thread": 10, "include_threads": True})
    assert answer.choices[0].finish_reason == "length"
    threads = answer.choices[0].message.threads
    assert [(t["finish_reason"], t["usage"]["completion_tokens"]) for t in threads] == [("length", 10)] * 2
    assert metrics(server)[name] == before + 2


def test_hanging_up_on_a_stream_in_a_fork_frees_everything(client, server):
    stream = client.chat.completions.create(**ASK, stream=True, stream_options={"include_threads": True})
    next(c for c in stream if getattr(c.choices[0].delta, "threads", None))
    stream.close()
    _wait_until_idle(server, client)


def test_hanging_up_on_an_answer_that_is_not_streamed_frees_everything(client, server):
    before = metrics(server)
    # So it can't be over before we have seen its fork; and we look at a counter, for the gauge may go
    # up and down between two looks at a busy server.
    endless = {"temperature": 0.3, "n": 8, "max_tokens": 3500, "ignore_eos": True, **taking(0.005)}
    body = json.dumps(ASK | endless)
    with closing(http.client.HTTPConnection(server.removeprefix("http://"), timeout=60)) as connection:
        connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
        end = time.monotonic() + IDLE_S
        while metrics(server)[FORKS] == before[FORKS]:
            assert time.monotonic() < end, "no choice forked"
    _wait_until_idle(server, client)
    generated = metrics(server)[GENERATED] - before[GENERATED]
    assert generated < 8 * 3500, "it was not cut"


def test_a_stop_string_in_a_thread_leaves_no_thread_running(client, server):
    assert _ask(client, stop=["a:352"]).choices[0].finish_reason == "stop"
    _wait_until_idle(server, client)


def test_an_answer_cut_in_its_threads_leaves_no_thread_running(client, server):
    _ask(client, max_tokens=150)
    _wait_until_idle(server, client)
