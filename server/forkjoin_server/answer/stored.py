"""What forking gave the responses that vLLM stores: fetched later, they say what they said at first.

vLLM keeps a stored response (``VLLM_ENABLE_RESPONSES_API_STORE=1``) as it was before we wrote its threads
and its usage. So its log is kept here, as long as vLLM keeps the response: until the server ends. That of a
response in the background hears its events on after the request for it has been answered.

A stored response is its API key's: to any other it is one that there is not, whatever is asked of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from forkjoin_scheduler.errors import BadRequestOptions
from forkjoin_scheduler.excerpt import cut
from forkjoin_scheduler.publish.events import Event
from forkjoin_scheduler.publish.feed import FEEDS, key_in
from forkjoin_server.answer.threads import ThreadLog
from forkjoin_server.answer.weaver import PassThrough, Presenter, Weaver
from forkjoin_server.asgi import Json, Send
from forkjoin_server.routes import RESPONSES, STORED


def feed_of(body: Json, path: str, key: str) -> str:
    """What the feed of a request is known by: ``key``, or its client's id if that can't hold the key."""
    request_id = body.get("request_id")
    if path == RESPONSES and body.get("background") and isinstance(request_id, str):
        return key_in(request_id) or request_id
    return key


class AnothersResponse(Exception):
    """A client asks for a response that is another API key's."""

    def __init__(self, response_id: str) -> None:
        super().__init__(f"Response with id '{cut(response_id, 100)}' not found.")
        #: As vLLM tells of one that there is not.
        self.body: Json = {
            "error": {
                "message": str(self),
                "type": "invalid_request_error",
                "param": "response_id",
                "code": 404,
            }
        }


@dataclass
class _Kept:
    queue: asyncio.Queue[Event]
    log: ThreadLog
    present: Callable[[ThreadLog], Presenter]


class StoredResponses:
    """The logs of stored responses, and whose these are, by their ids."""

    def __init__(self) -> None:
        self._kept: dict[str, _Kept] = {}
        #: By the id of each response that is stored, or being made: the tenant that asked for it.
        self._owners: dict[str, str] = {}

    def check_owner(self, path: str, tenant: str) -> None:
        """Raise AnothersResponse if what is asked for at ``path`` is of another than ``tenant``."""
        if path.startswith(STORED):
            self._check(_response_id(path), tenant)

    def claim(self, body: Json, tenant: str) -> None:
        """Let the response to ``body`` be one of ``tenant``, from the moment on in which it is asked for.

        Raises AnothersResponse if it is to go on from one of another's, BadRequestOptions if its id is one.
        """
        self._check(body.get("previous_response_id"), tenant)
        response_id = body["request_id"]
        if isinstance(response_id, str) and self._owners.setdefault(response_id, tenant) != tenant:
            raise BadRequestOptions("request_id: expected a new id, got a used one")

    def _check(self, response_id: object, tenant: str) -> None:
        if isinstance(response_id, str) and self._owners.get(response_id, tenant) != tenant:
            raise AnothersResponse(response_id)

    def keep(self, body: Json, weaver: Weaver, present: Callable[[ThreadLog], Presenter]) -> bool:
        """Keep what a response says of threads, and how, if vLLM stores it; returns whether it does.

        For the first time before its client learns of its end, and may fetch it at once.
        """
        is_stored = weaver.status == 200 and bool(body.get("store", True))
        if is_stored:
            self._kept[body["request_id"]] = _Kept(weaver.queue, weaver.log, present)
        return is_stored

    def answered(
        self, body: Json, weaver: Weaver, feed: str, present: Callable[[ThreadLog], Presenter]
    ) -> None:
        """A request has been answered, whose response vLLM may store."""
        if self.keep(body, weaver, present):
            weaver.hear()
            if body.get("background"):
                return
        elif isinstance(body["request_id"], str) and body["request_id"] not in self._kept:
            self._owners.pop(body["request_id"], None)
        FEEDS.unsubscribe(feed)

    def weaver(self, path: str, send: Send) -> Weaver | None:
        """What writes the answer to a request about a stored response; None if there is none at ``path``."""
        if not path.startswith(STORED):
            return None
        kept = self._kept.get(_response_id(path))
        if kept is None:
            return None
        presenter = kept.present(kept.log) if kept.log.is_wanted else PassThrough()
        return Weaver(send, kept.queue, kept.log, presenter)


def _response_id(path: str) -> str:
    return path.removeprefix(STORED).partition("/")[0]
