"""A client cancels one thread of an answer that a real server makes."""

from __future__ import annotations

import httpx
import pytest

from tests.server.asking import chat, worksheet
from tests.server.cancelling import ENDLESS, ENDLESS_VOTE, LIMIT_S, cancel, streaming
from tests.server.reading import wait_until_idle
from tests.server.unhurried import taking

pytestmark = pytest.mark.server


@pytest.fixture
def idle(server):
    """Behind the test every thread, slot and block is back."""
    yield
    one_token = chat(worksheet(2)) | {"max_tokens": 1}
    wait_until_idle(
        server, lambda: httpx.post(f"{server}/v1/chat/completions", json=one_token, timeout=LIMIT_S)
    )


def test_cancelled_one_by_one_threads_end_and_the_last_ends_the_answer(server, idle):
    with streaming(server, ENDLESS) as answer:
        answer.read_until(lambda: len(answer.threads) == 3)
        for num_ended, index in enumerate((1, 0, 2), 1):
            thread = answer.threads[index]
            said = {"id": thread["id"], "object": "forkjoin.thread", "status": "cancelling"}
            assert cancel(server, thread["id"]) == (202, said)
            answer.read_until(lambda of=thread: "finish_reason" in of)
            assert thread["finish_reason"] == "cancelled"
            assert sum("finish_reason" in t for t in answer.threads.values()) == num_ended
        answer.read_to_end()
    assert answer.finish_reason == "length"
    total = sum(t["usage"]["completion_tokens"] for t in answer.threads.values())
    assert answer.usage["completion_tokens"] == total < ENDLESS["max_tokens"]
    assert cancel(server, answer.threads[0]["id"])[0] == 404, "the answer is over"


def test_the_threads_of_a_vote_are_told_while_it_runs_and_end_one_by_one(server, idle):
    with streaming(server, ENDLESS_VOTE) as answer:
        answer.read_until(
            lambda: len(answer.threads) == 3 and all(t["content"] for t in answer.threads.values())
        )
        for index in (1, 0, 2):
            assert cancel(server, answer.threads[index]["id"])[0] == 202
            answer.read_until(lambda of=answer.threads[index]: "finish_reason" in of)
            assert answer.threads[index]["finish_reason"] == "cancelled"
        answer.read_to_end()
    assert answer.usage["forkjoin"]["vote"]["cancelled"] == [1, 0, 2]
    assert answer.usage["completion_tokens"] < 3 * ENDLESS_VOTE["max_tokens"]


def test_threads_that_wait_for_their_turn_say_so_until_the_one_before_them_has_ended(server, idle):
    in_turn = ENDLESS | {"forkjoin": ENDLESS["forkjoin"] | {"max_threads_running": 1}}
    with streaming(server, in_turn) as answer:
        answer.read_until(lambda: answer.waits == {1: "turn", 2: "turn"})
        assert cancel(server, answer.threads[0]["id"])[0] == 202
        answer.read_until(lambda: bool(answer.threads[1]["content"]))
    assert answer.waits == {1: "nothing", 2: "turn"}


def test_a_thread_that_has_ended_in_an_answer_that_goes_on_is_a_409_that_says_how(server, idle):
    with streaming(server, ENDLESS) as answer:
        answer.read_until(lambda: len(answer.threads) == 3)
        assert cancel(server, answer.threads[0]["id"])[0] == 202
        answer.read_until(lambda: "finish_reason" in answer.threads[0])
        status, body = cancel(server, answer.threads[0]["id"])
    assert (status, body["error"]["code"]) == (409, 409)
    assert body["error"]["message"].endswith("has ended already: cancelled")


def test_the_other_threads_write_what_they_would_have_written(server, idle):
    """One at a time: the last has not begun when the first writes."""
    ask = chat(worksheet(6)) | {"forkjoin": {"max_threads_running": 1}}
    with streaming(server, ask) as whole:
        whole.read_to_end()
    with streaming(server, ask | taking(0.01)) as answer:
        answer.read_until(lambda: len(answer.threads) == 6)
        assert cancel(server, answer.threads[5]["id"])[0] == 202
        answer.read_to_end()
    assert [answer.threads[i]["finish_reason"] for i in range(6)] == [*["stop"] * 5, "cancelled"]
    texts, wanted = ([a.threads[i]["content"] for i in range(5)] for a in (answer, whole))
    assert texts == wanted


@pytest.mark.parametrize("thread_id", ["root", "th_1", f"th_fj{'0' * 32}_0"])
def test_of_what_nobody_knows_it_says_what_was_seen(server, thread_id):
    status, body = cancel(server, thread_id)
    assert status == 404
    assert thread_id in body["error"]["message"]
