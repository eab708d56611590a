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


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
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


def test_logprobs_have_one_finite_entry_for_each_token_of_the_content(client, whole):
    choice = client.chat.completions.create(**ASK, logprobs=True, top_logprobs=2).choices[0]
    entries = choice.logprobs.content
    assert "".join(e.token for e in entries).removesuffix("<|end|>").startswith("<think>\n")
    assert choice.message.content == whole.choices[0].message.content
    assert all(math.isfinite(e.logprob) and e.logprob <= 0 for e in entries)


def test_logprobs_count_the_tokens_of_the_transcript(client, server):
    choice = client.chat.completions.create(**ASK, logprobs=True).choices[0]
    body = {"prompt": choice.message.content, "add_special_tokens": False}
    count = httpx.post(f"{server}/tokenize", json=body).json()["count"]
    assert len(choice.logprobs.content) in (count, count + 1), "the end of sequence may have one too"


def test_a_seed_makes_an_answer_repeatable(client):
    ask = ASK | {"temperature": 0.7, "max_tokens": 400}
    texts = [client.chat.completions.create(**ask, seed=s).choices[0].message.content for s in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_two_choices_count_all_their_tokens_once(client, whole):
    answer = client.chat.completions.create(**ASK, n=2)
    assert [c.message.content for c in answer.choices] == [whole.choices[0].message.content] * 2
    assert answer.usage.completion_tokens == 2 * whole.usage.completion_tokens
    assert answer.usage.forkjoin["num_threads"] == 2 * whole.usage.forkjoin["num_threads"]


def test_completions_and_responses_count_as_chat_does(client, whole):
    prompt = f"<|user|>{QUESTION}<|assistant|>"
    plain = client.completions.create(model="abacus", prompt=prompt, temperature=0, max_tokens=2000)
    response = client.responses.create(model="abacus", input=QUESTION, temperature=0)
    assert plain.usage.completion_tokens == whole.usage.completion_tokens
    assert response.usage.output_tokens == whole.usage.completion_tokens


def test_tokenize_knows_the_chat_template(server):
    body = {"model": "abacus", "messages": ASK["messages"]}
    chat = httpx.post(f"{server}/tokenize", json=body).json()
    plain = {"prompt": f"<|user|>{QUESTION}<|assistant|>", "add_special_tokens": False}
    assert chat["tokens"] == httpx.post(f"{server}/tokenize", json=plain).json()["tokens"]
