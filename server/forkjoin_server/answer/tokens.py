"""Threads on ``/inference/v1/generate``: ``choices[0].threads``, by their token ids."""

from __future__ import annotations

from forkjoin_server.answer.threads import ThreadLog
from forkjoin_server.asgi import Json


class TokenThreads:
    """Shows entries in chunks of their own, shaped after vLLM's first one."""

    def __init__(self, log: ThreadLog) -> None:
        self._log = log
        self._template: Json = {}
        self._choice: Json = {}

    @property
    def is_ready(self) -> bool:
        return bool(self._template)

    def pass_on(self, chunk: Json) -> list[Json]:
        if not self._template and chunk.get("choices"):
            self._template = {k: chunk[k] for k in ("request_id", "output_mode") if k in chunk}
            self._choice = {"index": 0, "finish_reason": None, "token_ids": []}
            self._choice |= {"text": ""} if "text" in chunk["choices"][0] else {}
        return [chunk]

    def show(self, entries: list[Json]) -> list[Json]:
        return [self._template | {"choices": [self._choice | {"threads": entries}]}]

    def whole(self, response: Json) -> Json:
        choice, *others = response["choices"]
        return response | {"choices": [choice | {"threads": self._log.threads}, *others]}
