from __future__ import annotations

import asyncio
import logging

from forkjoin_server import hangup

GONE = {"type": "http.disconnect"}


def test_a_client_that_hangs_up_is_one_line_in_the_log_and_no_other_message_is(caplog, monkeypatch):
    monkeypatch.setattr(hangup, "LOG", logging.getLogger("heard"))
    messages = [{"type": "http.request", "body": b"{}"}, GONE, GONE]

    async def receive():
        return messages.pop(0)

    async def run():
        noticed = hangup.noticing(receive, "chat-1")
        assert [(await noticed())["type"] for _ in range(3)] == ["http.request", *[GONE["type"]] * 2]

    with caplog.at_level(logging.INFO, "heard"):
        asyncio.run(run())
    assert caplog.messages == ["chat-1: the client hung up, and the request ends with it"]
