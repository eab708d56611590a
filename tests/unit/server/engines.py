"""Engines that say what they are told to, and a request without a body to an app that has them."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace


class Engines:
    """Stands in for vLLM's engine client: each engine says what it is told to."""

    def __init__(self, *says):
        self.says, self.asked = says, []
        self.engine_core = self

    async def call_utility_all_async(self, *call):
        self.asked.append(call)
        if isinstance(self.says[0], Exception):
            raise self.says[0]
        return list(self.says)


def ask(app, path, *, method="POST", **state):
    """The status and the body of what ``app`` answers, whose ``app.state`` is ``state``."""
    sent = []

    async def receive():
        raise AssertionError("the request has no body to be read")

    async def send(message):
        sent.append(message)

    app_of_vllm = SimpleNamespace(state=SimpleNamespace(**state))
    scope = {"type": "http", "method": method, "path": path, "headers": [], "app": app_of_vllm}
    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], json.loads(sent[1]["body"])
