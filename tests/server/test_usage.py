"""What an answer says of its tokens: usage in streams, batches, votes and stored responses."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import httpx
import pytest

from tests.server import random_requests, unhurried
from tests.server.conftest import start_server

pytestmark = pytest.mark.server

P2, P3, SHORT = "a=482*731, b=9047*36", "a=482*731, b=7*8, c=9047*36, d=613*274", "a=7*8"
CHAT, BATCH, COMPLETIONS = "/v1/chat/completions", "/v1/chat/completions/batch", "/v1/completions"
RESPONSES, GENERATE = "/v1/responses", "/inference/v1/generate"
ENV = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_ENABLE_RESPONSES_API_STORE": "1"}
WAIT_S = 120


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A server with all routes that count, and vLLM's store of responses."""
    log = tmp_path_factory.mktemp("usage") / "log"
    with start_server(log, "--enable-scale-out", *unhurried.FLAGS, env=ENV | unhurried.ENV) as (address, _):
        yield address


@pytest.fixture(scope="module")
def ask(address):
    def post(path: str, **body: Any) -> Any:
        answer = httpx.post(address + path, json={"temperature": 0} | body, timeout=300)
        assert answer.status_code == 200, answer.text
        return answer.json()

    return post


def _messages(prompt):
    return [{"role": "user", "content": prompt}]


def _stream(address, path, **body):
    """The chunks of a stream."""
    body = {"temperature": 0, "stream": True} | body
    with httpx.stream("POST", address + path, json=body, timeout=300) as answer:
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: {")]
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("limit", ["max_tokens", "max_total_tokens"])
def test_the_last_token_of_a_budget_may_end_the_last_thread(ask, limit):
    for num_tokens in (488, 489, 490):
        more = {limit: num_tokens} if limit == "max_tokens" else {"forkjoin": {limit: num_tokens}}
        answer = ask(CHAT, messages=_messages(P2), **more)
        assert answer["usage"]["completion_tokens"] == num_tokens
        assert answer["usage"]["forkjoin"]["total_tokens"] == num_tokens
        assert answer["choices"][0]["finish_reason"] == "length"


def test_continuous_usage_rises_with_each_chunk_and_ends_at_the_usage(address, ask):
    options = {"include_usage": True, "continuous_usage_stats": True}
    # so that few chunks have the tokens of several steps
    asked = {"messages": _messages(P2), "stream_options": options, **unhurried.taking(0.002)}
    chunks = _stream(address, CHAT, **asked)
    counts = [c["usage"]["completion_tokens"] for c in chunks if c.get("usage")]
    assert counts == sorted(counts)
    assert len(set(counts)) > 0.9 * len(counts)
    assert counts[-1] == ask(CHAT, messages=_messages(P2))["usage"]["completion_tokens"]


def test_continuous_usage_of_two_choices_counts_each_by_itself(address):
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = _stream(address, COMPLETIONS, prompt=[f"<|user|>{p}<|assistant|>" for p in (P2, SHORT)],
                     n=2, temperature=0.3, seed=5, max_tokens=600, stream_options=options)  # fmt: skip
    last = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            count = chunk["usage"]["completion_tokens"]
            assert count >= last.get(choice["index"], 0)
            last[choice["index"]] = count
    assert sum(last.values()) == chunks[-1]["usage"]["completion_tokens"]
    assert len(last) == 4


def test_a_batch_counts_those_that_did_not_fork_too(ask):
    answer = ask(BATCH, messages=[_messages(p) for p in (P2, SHORT, P3)])
    alone = [ask(CHAT, messages=_messages(p))["usage"]["completion_tokens"] for p in (P2, SHORT, P3)]
    usage = answer["usage"]
    assert usage["completion_tokens"] == usage["forkjoin"]["total_tokens"] == sum(alone)


def test_a_stream_of_a_vote_that_is_cut_has_its_finish_reason(address):
    forkjoin = {"best_of": 3, "vote": "a", "max_total_tokens": 5}
    chunks = _stream(address, CHAT, messages=_messages(P2), forkjoin=forkjoin)
    assert [c["choices"][0]["finish_reason"] for c in chunks if c["choices"][0]["finish_reason"]] == [
        "length"
    ]


def test_logprobs_tell_injected_tokens_apart(address, ask):
    asked = {"messages": _messages(P2), "logprobs": True, "top_logprobs": 2}
    answer = ask(CHAT, **asked)
    entries = answer["choices"][0]["logprobs"]["content"]
    injected = [e for e in entries if e.get("injected")]
    assert len(entries) - len(injected) == answer["usage"]["completion_tokens"]
    assert {(e["logprob"], len(e["top_logprobs"])) for e in injected} == {(0.0, 0)}
    assert all(len(e["top_logprobs"]) == 2 for e in entries if not e.get("injected"))
    chunks = _stream(address, CHAT, **asked)
    told = [e for c in chunks for e in (c["choices"][0].get("logprobs") or {}).get("content") or []]
    assert [e.get("injected", False) for e in told] == [e.get("injected", False) for e in entries]
    lists = ask(COMPLETIONS, prompt=f"<|user|>{P2}<|assistant|>", logprobs=2, max_tokens=900)
    assert sum(lists["choices"][0]["logprobs"]["injected"]) == len(injected)


def test_an_abort_by_the_clients_id_ends_the_family(address):
    done: list[Any] = []

    def chat():
        body = {"messages": _messages(P2), "ignore_eos": True, "max_tokens": 3500, **unhurried.taking(0.02)}
        done.append(
            httpx.post(address + CHAT, json=body, headers={"X-Request-Id": "abc"}, timeout=300).json()
        )

    asking = threading.Thread(target=chat)
    asking.start()
    end = time.monotonic() + WAIT_S
    while asking.is_alive():
        assert time.monotonic() < end, "it runs on"
        httpx.post(f"{address}/abort_requests", json={"request_ids": ["chatcmpl-abc"]}, timeout=60)
        asking.join(0.2)
    assert done[0]["choices"][0]["finish_reason"] == "abort"
    assert done[0]["usage"]["completion_tokens"] < 3500


def test_a_stop_token_that_ends_threads_ends_the_request_if_its_client_says_so(ask):
    answer = ask(CHAT, messages=_messages(P2), stop_token_ids=[271])
    choice = answer["choices"][0]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", 271)
    assert choice["message"]["content"].count("<Thread>") == 1


def test_max_tokens_inside_threads_leaves_a_text_that_can_be_read(ask, address):
    whole = ask(CHAT, messages=_messages(P2), forkjoin={"include_threads": True})
    threads = whole["choices"][0]["message"]["threads"]
    own = whole["usage"]["forkjoin"]["total_tokens"] - sum(t["usage"]["completion_tokens"] for t in threads)
    for num_tokens in (own - 4, own + 1, own + 2, own + 100):
        answer = ask(CHAT, messages=_messages(P2), max_tokens=num_tokens, forkjoin={"include_threads": True})
        (choice,) = answer["choices"]
        text = choice["message"]["content"]
        assert answer["usage"]["completion_tokens"] == num_tokens
        assert choice["finish_reason"] == "length"
        for tag in ("Thread", "Parallel"):
            assert text.count(f"<{tag}>") == text.count(f"</{tag}>")
        for thread in choice["message"]["threads"]:
            assert (thread["finish_reason"] == "length") == ("</Thread>" not in thread["content"])


def test_threads_that_a_stop_string_cuts_end_with_the_answer(ask, address):
    body = {"messages": _messages(P2), "stop": ["a:352"], "forkjoin": {"include_threads": True}}
    threads = ask(CHAT, **body)["choices"][0]["message"]["threads"]
    entries = [
        e
        for c in _stream(address, CHAT, **body)
        for e in c["choices"][0]["delta"].get("threads") or []
        if "finish_reason" in e
    ]
    assert sorted(e["index"] for e in entries) == [t["index"] for t in threads]
    assert all("finish_reason" in t for t in threads)


# ---- stored responses ------------------------------------------------------------------------


def _without_ids(response):
    """What a response says but for when and under which names."""
    threads = [
        {k: v for k, v in (i.get("thread") or {}).items() if k != "parent_id"} for i in response["output"]
    ]
    texts = [[part["text"] for part in item["content"]] for item in response["output"]]
    return response["usage"], texts, [{k: v for k, v in t.items() if k != "id"} for t in threads]


def _fetched(address, response_id):
    """A stored response, when it is over."""
    end = time.monotonic() + WAIT_S
    while True:
        response = httpx.get(f"{address}{RESPONSES}/{response_id}", timeout=60).json()
        if response["status"] not in ("queued", "in_progress"):
            return response
        assert time.monotonic() < end, response["status"]


@pytest.mark.parametrize("shown", [True, False])
def test_a_stored_response_says_what_it_said_at_first(address, ask, shown):
    response = ask(RESPONSES, input=P2, max_output_tokens=900, forkjoin={"include_threads": shown})
    assert _fetched(address, response["id"]) == response
    assert len(response["output"]) == (3 if shown else 1)


def test_a_streamed_response_is_stored_as_it_ended(address):
    *_, last = _stream(address, RESPONSES, input=P2, forkjoin={"include_threads": True})
    fetched = _fetched(address, last["response"]["id"])
    assert _without_ids(fetched)[0] == last["response"]["usage"]
    assert sorted(map(str, _without_ids(fetched)[1])) == sorted(map(str, _without_ids(last["response"])[1]))


@pytest.mark.parametrize("request_id", [None, "my-response"])
def test_a_response_in_the_background_counts_as_any_other(address, ask, request_id):
    own = {} if request_id is None else {"request_id": request_id}
    queued = ask(RESPONSES, input=P2, background=True, **own)
    fetched = _fetched(address, queued["id"])
    assert fetched["usage"] == ask(RESPONSES, input=P2)["usage"]
    assert fetched["usage"]["forkjoin"]["num_threads"] == 2


def test_a_cancelled_response_is_fetched_as_it_was_cancelled(address, ask):
    long = ", ".join(f"{name}={n}*731" for n, name in enumerate("abcdefgh", 482))
    asked = {"input": long, "background": True, "forkjoin": {"enabled": False}}
    queued = ask(RESPONSES, **asked, **unhurried.taking(0.05))
    cancelled = ask(f"{RESPONSES}/{queued['id']}/cancel")
    assert cancelled["status"] == "cancelled"
    assert _fetched(address, queued["id"]) == cancelled


# ---- tokens in, tokens out ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def token_ids(ask):
    return ask("/tokenize", prompt=f"<|user|>{P2}<|assistant|>", add_special_tokens=False)["tokens"]


def test_tokens_out_count_as_a_chat_and_are_switched_off_like_one(ask, token_ids):
    sampling = {"temperature": 0, "max_tokens": 900}
    chat = ask(CHAT, messages=_messages(P2))
    answer = ask(GENERATE, token_ids=token_ids, sampling_params=sampling)
    assert answer["usage"]["completion_tokens"] == chat["usage"]["completion_tokens"]
    assert answer["usage"]["forkjoin"] == chat["usage"]["forkjoin"]
    off = ask(GENERATE, token_ids=token_ids, sampling_params=sampling, forkjoin={"enabled": False})
    assert "forkjoin" not in off["usage"]
    assert len(off["choices"][0]["token_ids"]) == off["usage"]["completion_tokens"]


def test_tokens_out_show_threads_by_their_token_ids(address, ask, token_ids):
    body = {
        "token_ids": token_ids,
        "sampling_params": {"temperature": 0, "max_tokens": 900},
        "forkjoin": {"include_threads": True},
    }
    (choice,) = ask(GENERATE, **body)["choices"]
    assert [len(t["token_ids"]) for t in choice["threads"]] == [
        t["usage"]["completion_tokens"] for t in choice["threads"]
    ]
    assert all(t["token_ids"][-1] == 271 for t in choice["threads"])
    entries = [e for c in _stream(address, GENERATE, **body) for e in c["choices"][0].get("threads") or []]
    for thread in choice["threads"]:
        own = [e for e in entries if e["index"] == thread["index"]]
        assert [i for e in own for i in e.get("token_ids", [])] == thread["token_ids"]


# ---- random requests ---------------------------------------------------------------------------

NUM_RANDOM = 40


@pytest.mark.parametrize("seed", range(NUM_RANDOM))
def test_of_any_request_the_counts_are_right_and_whole_streamed_and_stored_are_the_same(address, ask, seed):
    asked = random_requests.Ask.drawn(seed)
    response = ask(asked.path, **asked.body)
    whole = random_requests.read_whole(asked.path, response)
    random_requests.check(asked, whole)
    if asked.path == RESPONSES:
        assert _fetched(address, response["id"]) == response
    if asked.can_stream:
        options = {} if asked.path == RESPONSES else {"stream_options": {"include_usage": True}}
        streamed = random_requests.read_chunks(
            asked.path, _stream(address, asked.path, **asked.body, **options)
        )
        random_requests.check(asked, streamed)
        assert streamed == whole


def test_responses_that_go_on_from_a_kept_one_share_it_until_the_cache_is_reset(address, ask):
    first = ask(RESPONSES, input=P2, max_output_tokens=300, forkjoin={"keep": 600})
    assert first["usage"]["forkjoin"]["kept"]["refused"] is None
    goes_on = {"previous_response_id": first["id"], "input": SHORT, "max_output_tokens": 8}
    agents = [ask(RESPONSES, **goes_on) for _ in range(3)]
    assert [agent["usage"]["forkjoin"]["continued"] for agent in agents] == ["kept"] * 3
    fetched = httpx.get(f"{address}{RESPONSES}/{agents[0]['id']}", timeout=300).json()
    assert fetched["usage"]["forkjoin"]["continued"] == "kept"
    assert httpx.post(f"{address}/reset_prefix_cache", timeout=300).status_code == 200
    assert ask(RESPONSES, **goes_on)["usage"]["forkjoin"]["continued"] == "reset"
