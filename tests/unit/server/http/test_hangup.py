from __future__ import annotations

import asyncio
import logging

import pytest

from forkjoin_server.http import hangup

ASKED = {"type": "http.request", "body": b"{}"}
GONE = {"type": "http.disconnect"}
PART = {"type": "http.response.body", "body": b"a", "more_body": True}
LAST = {"type": "http.response.body", "body": b""}


@pytest.mark.parametrize(
    ("messages", "lines"),
    [
        pytest.param([ASKED, GONE, GONE], 1, id="before its answer"),
        pytest.param([ASKED, PART, GONE, LAST], 1, id="within it"),
        pytest.param([ASKED, PART, LAST, GONE], 0, id="after it, as all do"),
    ],
)
def test_a_client_that_hangs_up_early_is_one_line_in_the_log(caplog, monkeypatch, messages, lines):
    monkeypatch.setattr(hangup, "LOG", logging.getLogger("heard"))
    passed_on = []

    async def run():
        for message in messages:
            if "response" in message["type"]:
                await send(message)
            else:
                passed_on.append(await receive())

    async def received():
        return next(m for m in messages[len(passed_on) :] if "response" not in m["type"])

    async def sent(message):
        passed_on.append(message)

    receive, send = hangup.noticing(received, sent, "chat-1")
    with caplog.at_level(logging.INFO, "heard"):
        asyncio.run(run())
    assert passed_on == messages
    assert caplog.messages == ["chat-1: the client hung up, and the request ends with it"] * lines
