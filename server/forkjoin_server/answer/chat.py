"""Threads on ``/v1/chat/completions``: ``delta.threads`` and ``message.threads``."""

from __future__ import annotations

from forkjoin_server.answer.threads import ThreadLog
from forkjoin_server.asgi import Json


class ChatThreads:
    """Shows entries in chunks of their own, shaped after vLLM's first one."""

    def __init__(self, log: ThreadLog) -> None:
        self._log = log
        self._template: Json = {}

    @property
    def is_ready(self) -> bool:
        return bool(self._template)

    def pass_on(self, chunk: Json) -> list[Json]:
        if not self._template:
            self._template = {k: chunk[k] for k in ("id", "object", "created", "model") if k in chunk}
        return [chunk]

    def show(self, entries: list[Json]) -> list[Json]:
        choice = {"index": 0, "delta": {"threads": entries}, "finish_reason": None}
        return [self._template | {"choices": [choice]}]

    def whole(self, response: Json) -> Json:
        choice, *others = response["choices"]
        message = choice["message"] | {"threads": self._log.threads}
        return response | {"choices": [choice | {"message": message}, *others]}
