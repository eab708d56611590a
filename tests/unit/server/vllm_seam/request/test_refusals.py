"""A client that sends what is refused can't fill the log: vLLM's own routes, as far as they go without an engine."""

from __future__ import annotations

import asyncio
import io
import logging
from types import SimpleNamespace

import httpx
import pytest
from fastapi import FastAPI
from vllm.v1.engine.exceptions import EngineGenerateError

from forkjoin_scheduler.errors import BadRequestOptions, Overloaded
from forkjoin_server.vllm_seam.request.refusals import log_refusals_in_a_line

BODY = {"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "a"}]}


@pytest.fixture
def ask(monkeypatch):
    """Asks /v1/messages of a server that raises an error there; what it answers, and what it logs."""
    from vllm.entrypoints.anthropic.api_router import router

    log = io.StringIO()
    handler = logging.StreamHandler(log)
    monkeypatch.setattr(logging.getLogger("vllm"), "handlers", [handler])

    def of(error, **args):
        async def create_messages(*_):
            raise error

        app = FastAPI()
        app.include_router(router)
        app.state.anthropic_serving_messages = SimpleNamespace(create_messages=create_messages)
        app.state.args = SimpleNamespace(**{"log_error_stack": False} | args)
        app.state.enable_server_load_tracking = False
        log_refusals_in_a_line(app.state)
        log_refusals_in_a_line(app.state)

        async def post():
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
                return await client.post("/v1/messages", json=BODY)

        return asyncio.run(post()), log.getvalue()

    of.log = log
    return of


def test_a_refused_body_is_one_short_line(ask):
    answer, log = ask(ValueError("expected less, got\nTraceback: " + "x" * 10_000))
    assert answer.status_code == 400
    assert log.count("\n") == 1
    assert log.startswith("Error in create_messages: expected less, got Traceback: xxx")
    assert len(log) < 400


def test_an_error_of_the_servers_keeps_its_traceback(ask):
    answer, log = ask(RuntimeError("torn"))
    assert answer.status_code == 500
    assert log.count("Traceback (most recent call last)") == 1


def test_an_operator_who_asks_for_tracebacks_gets_them(ask):
    _, log = ask(ValueError("wrong"), log_error_stack=True)
    assert "Traceback (most recent call last)" in log


def test_what_others_log_is_left_as_it_is(ask):
    ask(ValueError("wrong"))
    logging.getLogger("vllm.engine").error("it does not start", exc_info=ValueError("a config"))
    assert ask.log.getvalue().endswith("it does not start\nValueError: a config\n")


FULL = Overloaded("expected room, got none", reason="queued_families", status=503, retry_after_s=1)


@pytest.mark.parametrize(
    ("error", "is_the_clients"),
    [
        (BadRequestOptions("expected a grammar, got another"), True),
        (FULL, True),
        (RuntimeError("torn"), False),
    ],
    ids=["wrong", "no_room", "the_servers"],
)
def test_a_stream_that_is_refused_on_its_way_to_the_engine_is_one_line(ask, error, is_the_clients):
    """vLLM's engine client raises an error of its own then, of which it logs both tracebacks."""
    ask(error)
    before = len(ask.log.getvalue())
    raised = EngineGenerateError()
    raised.__cause__ = error
    logger = logging.getLogger("vllm.entrypoints.openai.chat_completion.serving")
    logger.error("Error in chat completion stream generator.", exc_info=raised)
    said = ask.log.getvalue()[before:]
    line = f"Error in chat completion stream generator. ({type(error).__name__})\n"
    assert (said == line) == is_the_clients
    assert ("EngineGenerateError" in said) != is_the_clients
