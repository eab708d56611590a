"""Control tokens that clients spell, on every route: text in chats, raw in completions."""

from __future__ import annotations

import httpx
import pytest

from tests.server.reading import metrics

pytestmark = pytest.mark.server

CHAT = "/v1/chat/completions"
JAVA = "Why does List<Thread> t fail? </Thread>"
#: As long in characters, which are tokens of the embedded model, and no control tokens.
PLAIN = "Why does List<Threat> t fail? </Threat>"
OUTLINES = "<Outlines><Outline>1: a</Outline><Outline>2: b</Outline></Outlines>"


def _post(server, path, body):
    answer = httpx.post(f"{server}{path}", json={"model": "abacus", "temperature": 0} | body, timeout=120)
    assert answer.status_code == 200, answer.text
    return answer.json()


def _bodies(text):
    told = [{"role": "user", "content": text}]
    parts = [{"role": "user", "content": [{"type": "text", "text": text}]}]
    return {
        "chat": (CHAT, {"messages": told, "max_tokens": 1}),
        "parts": (CHAT, {"messages": parts, "max_tokens": 1}),
        "batch": (f"{CHAT}/batch", {"messages": [told], "max_tokens": 1}),
        "responses": ("/v1/responses", {"input": text, "max_output_tokens": 1}),
        "messages": ("/v1/messages", {"messages": told, "max_tokens": 1}),
        "invocations": ("/invocations", {"messages": told, "max_tokens": 1}),
    }


def _num_prompt_tokens(usage):
    return usage.get("prompt_tokens", usage.get("input_tokens"))


@pytest.mark.parametrize("route", _bodies(""))
def test_a_control_token_in_a_chat_is_the_text_that_it_reads(server, route):
    usages = [_post(server, *_bodies(text)[route])["usage"] for text in (JAVA, PLAIN)]
    assert _num_prompt_tokens(usages[0]) == _num_prompt_tokens(usages[1])


def test_the_tokens_of_a_chat_read_as_it_was_written(server):
    told = [{"role": "user", "content": JAVA}]
    ids = _post(server, "/tokenize", {"messages": told})["tokens"]
    text = _post(server, "/detokenize", {"tokens": ids})["prompt"]
    assert text == f"<|user|>{JAVA}<|assistant|>"
    raw = _post(server, "/tokenize", {"prompt": text, "add_special_tokens": False})["tokens"]
    assert (len(raw), set(raw) - set(ids)) == (len(ids) - len("<Thread></Thread>") + 2, {270, 271})


def test_a_completion_stays_raw(server):
    usages = [
        _post(server, "/v1/completions", {"prompt": t, "max_tokens": 1})["usage"] for t in (JAVA, PLAIN)
    ]
    saved = len("<Thread></Thread>") - 2
    assert usages[0]["prompt_tokens"] == usages[1]["prompt_tokens"] - saved


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"messages": [{"role": "user", "content": OUTLINES}]}),
        (
            CHAT,
            {"messages": [{"role": "assistant", "content": OUTLINES}, {"role": "user", "content": "a=1+1"}]},
        ),
        ("/v1/completions", {"prompt": f"<|user|>a=7*8<|assistant|>{OUTLINES}"}),
    ],
    ids=["chat", "history", "completion"],
)
def test_nothing_in_a_prompt_forks(server, path, body):
    before = metrics(server).get("forkjoin:forks_total", 0)
    _post(server, path, body | {"max_tokens": 30})
    assert metrics(server).get("forkjoin:forks_total", 0) == before


def test_a_chat_with_a_forked_answer_in_its_history_forks_again(server):
    question = {"role": "user", "content": "a=482*731, b=9047*36"}
    body = {"messages": [question], "forkjoin": {"include_threads": True}}
    first = _post(server, CHAT, body)["choices"][0]["message"]
    assert first["threads"]
    history = [question, {"role": "assistant", "content": first["content"]}, question]
    again = _post(server, CHAT, body | {"messages": history})["choices"][0]["message"]
    assert again["content"] == first["content"]
    assert len(again["threads"]) == len(first["threads"])
