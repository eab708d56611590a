"""A reasoning parser beside fork/join: what forks is reasoning, and a thinking budget decodes in one row."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.server.asking import chat, worksheet
from tests.server.conftest import start_server
from tests.server.reading import SHOWN, metrics

pytestmark = pytest.mark.server

NUM_THREADS = 2
BODY = chat(worksheet(NUM_THREADS)) | {"return_token_ids": True}
CHAT = "/v1/chat/completions"
FORKS = "forkjoin:forks_total"
#: Of the embedded model.
THINK, END_OF_THINKING = 260, 261
BUDGET = 40


@pytest.fixture(scope="module")
def thinking(tmp_path_factory):
    """The address of a server that tells reasoning from answers."""
    log = tmp_path_factory.mktemp("reasoning") / "log"
    with start_server(log, "--reasoning-parser", "deepseek_r1") as (address, _):
        yield address


def ask(address, body, path=CHAT):
    answer = httpx.post(f"{address}{path}", json=body, timeout=240)
    assert answer.status_code == 200, answer.text
    return answer.json()


def parts(answer):
    """The reasoning and the content of an answer that was not streamed, and its tokens."""
    (choice,) = answer["choices"]
    return choice["message"]["reasoning"], choice["message"]["content"], choice["token_ids"]


def streamed(address, body):
    """The reasoning and the content of a stream, and the text of each thread."""
    texts, threads = {"reasoning": "", "content": ""}, {}
    with httpx.stream("POST", f"{address}{CHAT}", json=body | {"stream": True}, timeout=240) as answer:
        for line in answer.iter_lines():
            if not line.startswith("data: {"):
                continue
            for choice in json.loads(line.removeprefix("data: "))["choices"]:
                for name in texts:
                    texts[name] += choice["delta"].get(name) or ""
                for entry in choice["delta"].get("threads", ()):
                    threads[entry["index"]] = threads.get(entry["index"], "") + entry.get("content", "")
    return texts["reasoning"], texts["content"], threads


@pytest.fixture(scope="module")
def forked(thinking):
    return ask(thinking, BODY | {"forkjoin": SHOWN})


def test_the_transcript_is_reasoning_up_to_its_end_and_the_answer_behind_it(thinking, forked):
    reasoning, content, _ = parts(forked)
    raw = {"prompt": f"<|user|>{BODY['messages'][0]['content']}<|assistant|>", "max_tokens": 3000}
    text = ask(thinking, BODY | raw, "/v1/completions")["choices"][0]["text"]
    assert f"<think>{reasoning}</think>{content}" == text
    assert reasoning.count("<Thread>") == NUM_THREADS
    assert forked["usage"]["forkjoin"]["num_threads"] == NUM_THREADS


def test_streamed_it_is_the_same_and_each_thread_is_shown(thinking, forked):
    reasoning, content, threads = streamed(thinking, BODY | {"forkjoin": SHOWN})
    assert (reasoning, content) == parts(forked)[:2]
    shown = forked["choices"][0]["message"]["threads"]
    assert threads == {t["index"]: t["content"] for t in shown}
    assert len(shown) == NUM_THREADS
    assert all(t["content"] in reasoning for t in shown)


def test_a_thinking_budget_holds_and_its_request_does_not_fork(thinking):
    before = metrics(thinking)[FORKS]
    reasoning, content, ids = parts(ask(thinking, BODY | {"thinking_token_budget": BUDGET}))
    assert metrics(thinking)[FORKS] == before
    assert ids[0] == THINK
    assert ids.index(END_OF_THINKING) <= BUDGET + 1
    assert streamed(thinking, BODY | {"thinking_token_budget": BUDGET})[:2] == (reasoning, content)


@pytest.mark.parametrize("budget", [3000, -1])
def test_a_budget_that_is_not_reached_changes_no_token(thinking, forked, budget):
    """As of a request that does not fork; -1 is no budget, and forks."""
    sequential = parts(ask(thinking, BODY | {"forkjoin": {"enabled": False}}))
    found = parts(ask(thinking, BODY | {"thinking_token_budget": budget}))
    assert found == (parts(forked) if budget == -1 else sequential)


def test_beside_requests_that_fork_budgets_and_answers_stay_what_they_are_alone(thinking, forked):
    bodies = [BODY | {"thinking_token_budget": b} for b in (10, BUDGET, 100)] + [BODY] * 3
    alone = [parts(ask(thinking, body)) for body in bodies[:3]] + [parts(forked)] * 3
    with ThreadPoolExecutor(len(bodies)) as clients:
        beside = list(clients.map(lambda body: parts(ask(thinking, body)), bodies))
    assert beside == alone


def test_on_messages_a_budget_is_one_too(thinking):
    before = metrics(thinking)[FORKS]
    body = {k: v for k, v in BODY.items() if k != "return_token_ids"}
    answer = ask(thinking, body | {"thinking": {"type": "enabled", "budget_tokens": 1024}}, "/v1/messages")
    assert [part["type"] for part in answer["content"]] == ["thinking", "text"]
    assert metrics(thinking)[FORKS] == before


def test_branches_beside_a_budget_are_refused(thinking):
    asked = {"thinking_token_budget": BUDGET, "forkjoin": {"branches": [{"text": "a"}, {"text": "b"}]}}
    answer = httpx.post(f"{thinking}{CHAT}", json=BODY | asked, timeout=60)
    assert answer.status_code == 400
    assert "not with thinking_token_budget" in answer.text
