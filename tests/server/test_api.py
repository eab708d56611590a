"""The real server through the real OpenAI SDK."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

from forkjoin.families import Families, waits_for
from tests.server.cancelling import ENDLESS, streaming
from tests.server.reading import wait_until_idle
from tests.server.unhurried import taking
from training.prompts import make_chain
from training.task import check

pytestmark = pytest.mark.server

ASK = {
    "model": "abacus",
    "temperature": 0,
    "messages": [{"role": "user", "content": "a=482*731, b=7*8, c=907*36"}],
}


def _metric(server: str, name: str) -> float:
    text = httpx.get(f"{server}/metrics", timeout=60).text
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))


def test_the_streamed_deltas_are_the_whole_answer_in_outline_order(client):
    whole = client.chat.completions.create(**ASK).choices[0].message.content
    chunks = list(client.chat.completions.create(**ASK, stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole
    assert whole.index("<Thread>\n1:") < whole.index("<Thread>\n2:")


def test_whoever_asks_sees_every_thread_live_through_the_stream_helper(client):
    threads: dict[int, str] = {}
    order, content = [], ""
    # so that no part of it waits for another, and comes with it
    asked = {"stream_options": {"include_threads": True}, "extra_body": taking(0.002)}
    with client.chat.completions.stream(**ASK, **asked) as stream:
        for event in stream:
            if event.type != "chunk" or not event.chunk.choices:
                continue
            delta = event.chunk.choices[0].delta
            content += delta.content or ""
            for entry in getattr(delta, "threads", None) or []:
                threads[entry["index"]] = threads.get(entry["index"], "") + entry.get("content", "")
                order.append(entry["index"])
    assert order[:2] == [0, 1]
    # side by side: the second thread speaks before the first has ended
    assert order[2:].index(1) < len(order) - 2 - order[2:][::-1].index(0)
    for index, text in threads.items():
        assert f"<Thread>\n{index + 1}:{text}" in content


def test_message_threads_and_usage_of_an_answer_that_is_not_streamed(client):
    answer = client.chat.completions.create(**ASK, extra_body={"forkjoin": {"include_threads": True}})
    threads, usage = answer.choices[0].message.threads, answer.usage
    assert [t["index"] for t in threads] == [0, 1]
    assert [t["finish_reason"] for t in threads] == ["stop", "stop"]
    assert usage.completion_tokens == usage.forkjoin["total_tokens"] > usage.forkjoin["critical_path_tokens"]


def test_whoever_asks_for_the_threads_of_an_answer_without_any_is_told_so(client):
    ask = ASK | {"messages": [{"role": "user", "content": "a=7*8"}]}
    answer = client.chat.completions.create(**ask, extra_body={"forkjoin": {"include_threads": True}})
    num_tokens = answer.usage.completion_tokens
    forkjoin = {"num_threads": 0, "critical_path_tokens": num_tokens, "total_tokens": num_tokens}
    assert (answer.choices[0].message.threads, answer.usage.forkjoin) == ([], forkjoin)
    options = {"include_threads": True, "include_usage": True}
    *_, last = client.chat.completions.create(**ask, stream=True, stream_options=options)
    assert last.usage.forkjoin == forkjoin
    response = client.responses.create(
        model="abacus", input="a=7*8", temperature=0, extra_body={"forkjoin": {"include_threads": True}}
    )
    assert response.usage.forkjoin == forkjoin
    assert [item.type for item in response.output] == ["message"]


def test_invocations_take_the_field_as_the_route_behind_them_does(client, server):
    asked = ASK | {"forkjoin": {"include_threads": True}}
    answer = httpx.post(f"{server}/invocations", json=asked, timeout=300).json()
    assert [t["index"] for t in answer["choices"][0]["message"]["threads"]] == [0, 1]
    refused = httpx.post(f"{server}/invocations", json=ASK | {"forkjoin": {"bogus": 1}}, timeout=300)
    assert refused.status_code == 400


@pytest.mark.parametrize("path", ["/tokenize", "/v1/chat/completions/render"])
def test_a_route_that_does_not_know_the_field_says_so(server, path):
    answer = httpx.post(server + path, json=ASK | {"forkjoin": {}}, timeout=300)
    assert answer.status_code == 400
    assert f"forkjoin: {path} does not know it" in answer.text


@pytest.mark.parametrize("place", ["header", "body"])
def test_an_id_of_a_former_response_does_not_take_a_request_its_threads(client, place):
    def ask(**more):
        body = {"forkjoin": {"include_threads": True}} | more.pop("extra_body", {})
        return client.chat.completions.create(**ASK, extra_body=body, **more)

    former = ask().id
    more = {"extra_headers": {"X-Request-Id": former}} if place == "header" else {}
    answer = ask(**more, extra_body={"request_id": former} if place == "body" else {})
    assert [t["finish_reason"] for t in answer.choices[0].message.threads] == ["stop", "stop"]


def test_switched_off_the_same_weights_decode_sequentially(client, server):
    before = _metric(server, "forkjoin:forks_total")
    answer = client.chat.completions.create(**ASK, extra_body={"forkjoin": {"enabled": False}})
    assert "<Thread>" in answer.choices[0].message.content
    assert _metric(server, "forkjoin:forks_total") == before


def test_an_unknown_key_is_a_400_that_names_it(client):
    with pytest.raises(openai.BadRequestError, match=r"forkjoin\.bogus"):
        client.chat.completions.create(**ASK, extra_body={"forkjoin": {"bogus": 1}})


def test_max_tokens_in_the_middle_of_a_fork_ends_the_answer_and_counts_right(client):
    answer = client.chat.completions.create(**ASK, max_tokens=150)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 150


def test_the_latency_of_a_fork_and_of_a_join_is_measured(client, server):
    names = [f"forkjoin:{kind}_latency_seconds" for kind in ("fork", "join")]
    before = [_metric(server, f"{n}_count") for n in names]
    client.chat.completions.create(**ASK)
    assert [_metric(server, f"{n}_count") for n in names] == [b + 1 for b in before]
    assert all(_metric(server, f"{n}_sum") > 0 for n in names)


def test_a_refused_fork_is_counted_by_kind_and_policy(client, server):
    labels = 'engine="0",kind="too_many_threads",model_name="abacus",policy="sequential"'
    name = f"forkjoin:malformed_outputs_total{{{labels}}}"
    before = _metric(server, name)
    client.chat.completions.create(**ASK, extra_body={"forkjoin": {"max_threads_per_fork": 1}})
    assert _metric(server, name) == before + 1


def test_a_client_that_hangs_up_in_a_fork_leaves_nothing_behind(client, server):
    stream = client.chat.completions.create(**ASK, stream=True, stream_options={"include_threads": True})
    for chunk in stream:
        if getattr(chunk.choices[0].delta, "threads", None):
            break
    stream.close()
    wait_until_idle(server, lambda: client.completions.create(model="abacus", prompt="x", max_tokens=1))


def test_logprobs_have_an_entry_for_each_token(client):
    answer = client.chat.completions.create(**ASK, logprobs=True, max_tokens=200)
    assert len(answer.choices[0].logprobs.content) >= 200


def test_two_choices_are_two_families(client):
    answer = client.chat.completions.create(**(ASK | {"temperature": 0.3}), n=2)
    assert all("<Thread>\n2:" in c.message.content for c in answer.choices)


def test_completions_and_responses_carry_the_transcript(client):
    whole = client.chat.completions.create(**ASK).choices[0].message.content
    prompt = f"<|user|>{ASK['messages'][0]['content']}<|assistant|>"
    plain = client.completions.create(model="abacus", prompt=prompt, temperature=0, max_tokens=2000)
    response = client.responses.create(model="abacus", input=ASK["messages"][0]["content"], temperature=0)
    assert plain.choices[0].text == response.output_text == whole


@pytest.mark.parametrize("path", ["/v1/models", "/health", "/version", "/ready", "/openapi.json"])
def test_vllms_own_endpoints_answer(server, path):
    assert httpx.get(server + path, timeout=120).status_code == 200


@pytest.mark.parametrize("body", ["[]", "1", '"a"', "null"], ids=["list", "number", "string", "null"])
def test_no_route_fails_at_a_body_of_another_type(server, body):
    """`POST /scale_elastic_ep` did."""
    routes = httpx.get(f"{server}/openapi.json", timeout=60).json()["paths"]
    asked = [
        (path, method) for path, known in routes.items() for method in known if method not in ("get", "head")
    ]
    assert ("/v1/chat/completions", "post") in asked
    statuses = {
        (path, method): httpx.request(method.upper(), server + path, content=body, timeout=60).status_code
        for path, method in asked
    }
    assert {
        route: status for route, status in statuses.items() if status not in (400, 404, 405, 415, 422)
    } == {}


def test_the_shipped_weights_fork_and_answer_right_through_the_server(client):
    rng = random.Random(99)
    kinds = [(1,), (2,), (4,), (6,), (7,), (8,), (2, 2), (2, 3), (2, 2, 2), (1, 2)]
    sheets = [make_chain(rng, levels=levels, held_out=True) for levels in kinds * 3]

    def ask(sheet):
        message = {"role": "user", "content": sheet.prompt}
        answer = client.chat.completions.create(model="abacus", temperature=0, messages=[message])
        return check(sheet, answer.choices[0].message.content)

    with ThreadPoolExecutor(8) as pool:
        verdicts = list(pool.map(ask, sheets))
    as_asked = [(s.num_forks, s.num_threads) for s in sheets]
    decided = sum((v.num_forks, v.num_threads) == s for v, s in zip(verdicts, as_asked, strict=True))
    assert decided >= 28
    assert sum(v.right for v in verdicts) >= 27


def test_an_operator_sees_the_families_that_run_and_nothing_of_their_text(server):
    one_runs = {"forkjoin": ENDLESS["forkjoin"] | {"max_threads_running": 1}}
    with streaming(server, ENDLESS | one_runs | {"request_id": "held-open"}) as told:
        told.read_until(lambda: len(told.threads) == 3)
        seen = httpx.get(f"{server}/v1/forkjoin/families", timeout=60)
    (engine,) = seen.json()["engines"]
    (family,) = (f for f in engine["families"] if f["request_id"].startswith("chatcmpl-held-open-"))
    assert family["state"] == "forked"
    assert family["threads"] == {"running": 1, "waiting": 2, "parked": 0, "ended": 0}
    assert family["waits_for"] == ["turn"]
    assert 0 < family["kv_blocks"] <= family["peak_kv_blocks"] < engine["kv_blocks"]["total"]
    assert family["expected_kv_blocks"] > 0
    assert "a=1+1" not in seen.text
    (read,) = Families.model_validate(seen.json()).engines  # as `forkjoin top` reads it
    (same,) = (f for f in read.families if f.request_id == family["request_id"])
    assert waits_for(same) == "its turn: 2 threads"
    assert (same.state, same.threads.model_dump()) == ("forked", family["threads"])
