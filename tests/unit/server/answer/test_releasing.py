"""What ``POST /v1/forkjoin/kept/{response_id}/release`` answers, without an engine."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from forkjoin_scheduler.dialects.files import load
from forkjoin_scheduler.policy.backlog import Tenant, Visit
from forkjoin_scheduler.request.visits import VISIT
from forkjoin_scheduler.settings import KEY as KEY_OF_SETTINGS
from forkjoin_scheduler.settings import Settings
from forkjoin_server.answer.releasing import asked_at
from forkjoin_server.http.bodies import BodyMiddleware
from forkjoin_server.http.middleware import ForkJoinMiddleware
from tests.unit.server.engines import Engines
from tests.unit.server.engines import ask as ask_app

ANSWER = "resp_fj" + "0123456789abcdef" * 2
FORKS = {KEY_OF_SETTINGS: Settings.of(load("threadweaver"), {}).model_dump(mode="json")}


def ask(app, engines, *, config=FORKS):
    """The status and the body of what ``app`` answers."""
    config = SimpleNamespace(additional_config=config, model_config=None)
    path = f"/v1/forkjoin/kept/{ANSWER}/release"
    return ask_app(app, path, engine_client=engines, vllm_config=config)


async def vllm(scope, receive, send):
    raise AssertionError("it is none of vLLM's")


def test_all_engines_are_told_whose_it_is_to_be():
    engines = Engines("unknown", "released")
    VISIT.set(Visit(Tenant("alice")))
    try:
        answer = ask(BodyMiddleware(vllm), engines)
    finally:
        VISIT.set(None)
    assert answer == (200, {"id": ANSWER, "object": "forkjoin.kept", "status": "released"})
    assert engines.asked == [("forkjoin_release", ANSWER, "alice")]


@pytest.mark.parametrize("says", [["unknown"], ["unknown", "unknown"]])
def test_what_no_engine_keeps_is_not_found(says):
    status, body = ask(ForkJoinMiddleware(vllm), Engines(*says))
    assert (status, body["error"]["param"]) == (404, "response_id")
    assert ANSWER in body["error"]["message"]


def test_a_server_that_never_forks_asks_no_engine():
    engines = Engines("released")
    assert ask(BodyMiddleware(vllm), engines, config={})[0] == 404
    assert engines.asked == []


def test_an_engine_that_can_not_answer_is_a_503(caplog):
    status, body = ask(ForkJoinMiddleware(vllm), Engines(RuntimeError("it is dead")))
    assert status == 503
    assert "it is dead" not in body["error"]["message"]
    assert "it is dead" in caplog.text


def test_while_a_server_drains_answers_can_still_be_released():
    app = ForkJoinMiddleware(vllm)
    app.lifecycle.is_draining = True
    assert ask(app, Engines("released"))[0] == 200


def test_other_methods_and_paths_are_not_meant():
    assert asked_at("GET", f"/v1/forkjoin/kept/{ANSWER}/release") is None
    assert asked_at("POST", f"/v1/forkjoin/kept/{ANSWER}") is None
    assert asked_at("POST", "/v1/forkjoin/kept//release") is None
