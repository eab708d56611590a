"""What ``POST /v1/forkjoin/threads/{thread_id}/cancel`` answers, without an engine."""

from __future__ import annotations

import pytest

from forkjoin_scheduler.policy.backlog import Tenant, Visit
from forkjoin_scheduler.request.visits import VISIT
from forkjoin_server.answer.thread_ids import ThreadName, name_in, thread_id
from forkjoin_server.http.bodies import BodyMiddleware
from forkjoin_server.http.cancelling import asked_at
from forkjoin_server.http.middleware import ForkJoinMiddleware
from tests.unit.server.engines import Engines
from tests.unit.server.engines import ask as ask_app

KEY = "fj" + "0123456789abcdef" * 2
THREAD = thread_id(KEY, 3)


def ask(app, engines, thread, method="POST"):
    """The status and the body of what ``app`` answers."""
    path = f"/v1/forkjoin/threads/{thread}/cancel"
    return ask_app(app, path, method=method, engine_client=engines)


async def vllm(scope, receive, send):
    await send({"type": "http.response.start", "status": 418, "headers": []})
    await send({"type": "http.response.body", "body": b"{}"})


def test_the_engine_that_runs_the_thread_is_told_whose_it_is_to_be():
    engines = Engines("unknown", "cancelling")
    VISIT.set(Visit(Tenant("alice")))
    try:
        answer = ask(BodyMiddleware(vllm), engines, THREAD)
    finally:
        VISIT.set(None)
    assert answer == (202, {"id": THREAD, "object": "forkjoin.thread", "status": "cancelling"})
    assert engines.asked == [("cancel_thread", KEY, 3, "alice")]


@pytest.mark.parametrize(
    ("heard", "said"),
    [("eos", "stop"), ("length", "length"), ("client_cancelled", "cancelled"), ("cancelled", "length")],
)
def test_of_a_thread_that_has_ended_it_says_how(heard, said):
    status, body = ask(ForkJoinMiddleware(vllm), Engines(heard), THREAD)
    assert (status, body["error"]["type"]) == (409, "ConflictError")
    assert body["error"]["message"].endswith(f"{THREAD} has ended already: {said}")


def test_a_thread_that_no_engine_knows_is_not_found():
    status, body = ask(ForkJoinMiddleware(vllm), Engines("unknown", "unknown"), THREAD)
    assert (status, body["error"]["param"]) == (404, "thread_id")
    assert THREAD in body["error"]["message"]


@pytest.mark.parametrize("thread", ["root", "th_1", f"th_{KEY}_", f"th_{KEY}_-1", f"th_{KEY}_01", "x" * 999])
def test_what_is_no_id_asks_no_engine(thread):
    engines = Engines("cancelling")
    status, body = ask(ForkJoinMiddleware(vllm), engines, thread)
    assert status == 404
    assert len(body["error"]["message"]) < 400
    assert engines.asked == []


def test_an_engine_that_can_not_answer_is_a_503(caplog):
    status, body = ask(ForkJoinMiddleware(vllm), Engines(RuntimeError("it is dead")), THREAD)
    assert status == 503
    assert "it is dead" not in body["error"]["message"]
    assert "it is dead" in caplog.text


def test_while_a_server_drains_threads_can_still_be_cancelled():
    app = ForkJoinMiddleware(vllm)
    app.lifecycle.is_draining = True
    assert ask(app, Engines("cancelling"), THREAD)[0] == 202


def test_other_methods_and_paths_are_vllms():
    engines = Engines("cancelling")
    assert ask(ForkJoinMiddleware(vllm), engines, THREAD, "GET")[0] == 418
    assert asked_at("POST", f"/v1/forkjoin/threads/{THREAD}") is None
    assert asked_at("POST", "/v1/forkjoin/threads//cancel") is None
    assert engines.asked == []


@pytest.mark.parametrize("index", [0, 7, 2_147_483_647])
def test_an_id_names_its_thread(index):
    assert name_in(thread_id(KEY, index)) == ThreadName(KEY, index)
    assert name_in(thread_id(KEY, -1)) is None
