"""What forking gave the responses that vLLM stores: fetched later, they say what they said at first.

vLLM keeps a stored response (``VLLM_ENABLE_RESPONSES_API_STORE=1``) as it was before we wrote its threads
and its usage. So its log is kept here, as long as vLLM keeps the response: until the server ends. That of a
response in the background hears its events on after the request for it has been answered.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from forkjoin_scheduler.feed import FEEDS, key_in
from forkjoin_server.responses import ResponseThreads
from forkjoin_server.routes import RESPONSES, STORED
from forkjoin_server.threads import Json, ThreadLog
from forkjoin_server.weaver import Send, Unseen, Weaver


def feed_of(body: Json, path: str, key: str) -> str:
    """What the feed of a request is known by: ``key``, or its client's id if that can't hold the key."""
    request_id = body.get("request_id")
    if path == RESPONSES and body.get("background") and isinstance(request_id, str):
        return key_in(request_id) or request_id
    return key


@dataclass
class _Kept:
    queue: asyncio.Queue[Json]
    log: ThreadLog


class StoredResponses:
    """The logs of stored responses, by their ids."""

    def __init__(self) -> None:
        self._kept: dict[str, _Kept] = {}

    def answered(self, body: Json, weaver: Weaver, feed: str) -> None:
        """A request that vLLM stores has been answered: keep what its response says of threads."""
        if weaver.status == 200 and body.get("store", True):
            weaver.hear()
            self._kept[body["request_id"]] = _Kept(weaver.queue, weaver.log)
            if body.get("background"):
                return
        FEEDS.unsubscribe(feed)

    def weaver(self, path: str, send: Send) -> Weaver | None:
        """What writes the answer to a request about a stored response; None if there is none at ``path``."""
        if not path.startswith(STORED):
            return None
        kept = self._kept.get(path.removeprefix(STORED).partition("/")[0])
        if kept is None:
            return None
        presenter = ResponseThreads(kept.log) if kept.log.is_wanted else Unseen()
        return Weaver(send, kept.queue, kept.log, presenter)
