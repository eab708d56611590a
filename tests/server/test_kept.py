"""Answers that are kept for requests that go on from them, of the real server."""

from __future__ import annotations

import json
import time

import httpx
import pytest

from tests.server.asking import chat, worksheet
from tests.server.reading import metrics

pytestmark = pytest.mark.server

ASK = chat(worksheet(2)) | {"max_tokens": 200}
#: Of the embedded model's turns, more than a block of them.
BLOCK, LIMIT_S = 32, 240


def ask(server, messages, forkjoin, *, stream=False):
    """The id, the text and ``usage.forkjoin`` of an answer."""
    body = ASK | {"messages": messages, "forkjoin": forkjoin}
    if not stream:
        answer = httpx.post(f"{server}/v1/chat/completions", json=body, timeout=LIMIT_S).json()
        return answer["id"], answer["choices"][0]["message"]["content"], answer["usage"].get("forkjoin")
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    with httpx.stream("POST", f"{server}/v1/chat/completions", json=body, timeout=LIMIT_S) as answer:
        chunks = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: {")]
    text = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"])
    return chunks[0]["id"], text, chunks[-1]["usage"].get("forkjoin")


def release(server, answer_id):
    return httpx.post(f"{server}/v1/forkjoin/kept/{answer_id}/release", timeout=LIMIT_S)


def wait_for(what):
    end = time.monotonic() + LIMIT_S
    while not (found := what()):
        assert time.monotonic() < end
        time.sleep(0.1)
    return found


def shown(server):
    (engine,) = httpx.get(f"{server}/v1/forkjoin/families", timeout=LIMIT_S).json()["engines"]
    return engine["kept"]


@pytest.mark.parametrize("how", [{"stream": False}, {"stream": True}], ids=["whole", "stream"])
@pytest.mark.parametrize("forks", [True, False], ids=["forks", "sequential"])
def test_an_answer_is_kept_shown_continued_and_released(server, how, forks):
    before = metrics(server)
    answer_id, text, usage = ask(server, ASK["messages"], {"keep": 600, "enabled": forks}, **how)
    assert (usage["num_threads"] > 0) == forks
    assert (usage["kept"]["seconds"], usage["kept"]["refused"]) == (600, None)
    assert usage["kept"]["tokens"] >= BLOCK
    kept = wait_for(lambda: [a for a in shown(server)["answers"] if answer_id in a["request_id"]])
    assert kept[0]["tokens"] == usage["kept"]["tokens"]
    history = [*ASK["messages"], {"role": "assistant", "content": text}, {"role": "user", "content": "a=7*8"}]
    goes_on = {"continues": answer_id, "enabled": False}
    assert ask(server, history, goes_on, **how)[2]["continued"] == "kept"
    assert release(server, answer_id).json()["status"] == "released"
    assert release(server, answer_id).status_code == 404
    assert ask(server, history, goes_on, **how)[2]["continued"] == "released"
    assert ask(server, history, {"continues": "another", "enabled": False}, **how)[2] is None
    wait_for(lambda: metrics(server)["forkjoin:leases"] == before["forkjoin:leases"])
    after = metrics(server)
    grown = {name: after[name] - before[name] for name in after if name.startswith("forkjoin:")}
    counted = ("answers_kept", "answers_continued", "leases_ended", "internal_errors", "leased_kv_blocks")
    assert [grown.get(f"forkjoin:{name}_total", grown.get(f"forkjoin:{name}")) for name in counted] == [
        1, 2, 1, 0, 0,
    ]  # fmt: skip


def test_a_lease_ends_by_itself_in_an_idle_server(server):
    answer_id, _, _ = ask(server, ASK["messages"], {"keep": 0.5, "enabled": False})
    wait_for(lambda: metrics(server)["forkjoin:leases"] == 0)
    assert release(server, answer_id).status_code == 404


def test_what_can_not_be_kept_is_refused_with_what_to_do(server):
    body = ASK | {"forkjoin": {"keep": 1e9}}
    answer = httpx.post(f"{server}/v1/chat/completions", json=body, timeout=LIMIT_S)
    assert answer.status_code == 400
    assert "expected at most 3600 seconds, the server's --max-keep-s" in answer.json()["error"]["message"]
