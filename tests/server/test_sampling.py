"""vLLM's own request fields keep their meaning inside threads."""

from __future__ import annotations

import math

import httpx
import pytest

pytestmark = pytest.mark.server

QUESTION = "a=482*731, b=7*8, c=907*36"
ASK = {
    "model": "abacus",
    "temperature": 0,
    "messages": [{"role": "user", "content": QUESTION}],
    "max_tokens": 2000,
}


@pytest.fixture(scope="module")
def whole(client):
    return client.chat.completions.create(**ASK)


WAYS = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


@WAYS
def test_a_stop_string_in_a_thread_ends_the_answer_before_it(client, whole, stream):
    content = whole.choices[0].message.content
    stop = content[content.index("<Thread>\n2:") :].splitlines()[2][:12]
    answer = client.chat.completions.create(**ASK, stop=[stop], stream=stream)
    if stream:
        chunks = [c.choices[0] for c in answer]
        text, reason = "".join(c.delta.content or "" for c in chunks), chunks[-1].finish_reason
    else:
        text, reason = answer.choices[0].message.content, answer.choices[0].finish_reason
    assert (text, reason) == (content[: content.index(stop)], "stop")


@pytest.mark.parametrize("stop", ["c:32652", "total"], ids=["in_a_thread", "behind_the_join"])
def test_an_answer_ended_by_a_stop_string_counts_each_generated_token_once(client, whole, stop):
    answer = client.chat.completions.create(**ASK, stop=[stop])
    assert answer.choices[0].message.content == whole.choices[0].message.content.partition(stop)[0]
    assert answer.usage.completion_tokens == answer.usage.forkjoin["total_tokens"]


def test_logprobs_have_one_finite_entry_for_each_token_of_the_content(client, server, whole):
    choice = client.chat.completions.create(**ASK, logprobs=True, top_logprobs=2).choices[0]
    content, entries = choice.message.content, choice.logprobs.content
    assert content == whole.choices[0].message.content
    assert all(math.isfinite(e.logprob) and e.logprob <= 0 for e in entries)
    body = {"prompt": content, "add_special_tokens": False}
    tokens = httpx.post(f"{server}/tokenize", json=body, timeout=60).json()["tokens"]
    # the end of sequence, which the content does not show, has an entry too
    assert len(entries) == len(tokens) + 1


def test_what_the_engine_wrote_was_certain(client):
    entries = client.chat.completions.create(**ASK, logprobs=True).choices[0].logprobs.content
    headers = [i for i, e in enumerate(entries) if e.token == "<Thread>"]
    assert len(headers) == 2
    assert [entries[i].logprob for i in headers] == [0, 0]


@pytest.mark.parametrize("temperature", [0.7, 1.5])
def test_a_seed_makes_an_answer_repeatable(client, temperature):
    ask = ASK | {"temperature": temperature, "seed": 1, "max_tokens": 400}
    first, second = (client.chat.completions.create(**ask).choices[0].message.content for _ in range(2))
    assert first == second


def test_another_seed_samples_another_answer(client):
    # hot, for the model is too sure of itself to answer differently at 0.7
    ask = ASK | {"temperature": 2.0, "max_tokens": 400}
    texts = {client.chat.completions.create(**ask, seed=s).choices[0].message.content for s in range(4)}
    assert len(texts) > 1


@WAYS
def test_two_choices_count_all_their_tokens_once(client, stream):
    ask = ASK | {"temperature": 0.3, "n": 2, "stream": stream}
    if stream:
        *_, last = client.chat.completions.create(**ask, stream_options={"include_usage": True})
        usage = last.usage
    else:
        usage = client.chat.completions.create(**ask).usage
    assert usage.completion_tokens == usage.forkjoin["total_tokens"]
    assert usage.forkjoin["num_threads"] == 4


def test_completions_count_as_chat_does(client, whole):
    prompt = f"<|user|>{QUESTION}<|assistant|>"
    plain = client.completions.create(model="abacus", prompt=prompt, temperature=0, max_tokens=2000)
    assert plain.usage.completion_tokens == whole.usage.completion_tokens
    assert plain.usage.forkjoin == whole.usage.forkjoin


def test_responses_count_as_chat_does(client, whole):
    response = client.responses.create(model="abacus", input=QUESTION, temperature=0)
    assert response.usage.output_tokens == whole.usage.completion_tokens
    assert response.usage.total_tokens == whole.usage.total_tokens


def test_streamed_responses_carry_the_transcript_and_count_as_chat_does(client, whole):
    events = list(client.responses.create(model="abacus", input=QUESTION, temperature=0, stream=True))
    text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert text == whole.choices[0].message.content
    assert events[-1].type == "response.completed"
    assert events[-1].response.usage.output_tokens == whole.usage.completion_tokens


def test_tokenize_knows_the_chat_template(server):
    body = {"model": "abacus", "messages": ASK["messages"]}
    chat = httpx.post(f"{server}/tokenize", json=body, timeout=60).json()
    plain = {"prompt": f"<|user|>{QUESTION}<|assistant|>", "add_special_tokens": False}
    assert chat["tokens"] == httpx.post(f"{server}/tokenize", json=plain, timeout=60).json()["tokens"]
