"""Fork/join around vLLM's routes: an ASGI middleware, so that vLLM's handlers stay as they are.

Here is its outside, which reads no body. Inside, next to the routes, ``bodies.py`` reads them, and
``generating.py`` lets vLLM answer those that may fork.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.routing import Match, Mount

from forkjoin_scheduler.errors import Overloaded
from forkjoin_scheduler.policy.backlog import Visit
from forkjoin_scheduler.publish.feed import FEEDS
from forkjoin_scheduler.request.visits import BACKLOG, VISIT
from forkjoin_server import own_responses
from forkjoin_server.access import entrance
from forkjoin_server.access.access import Access
from forkjoin_server.access.entrance import Entrance
from forkjoin_server.access.guard import NotAllowed, refuse, route_path
from forkjoin_server.answer import releasing
from forkjoin_server.asgi import App, Json, Message, Receive, Send
from forkjoin_server.http import cancelling
from forkjoin_server.http.bodies import BodyMiddleware
from forkjoin_server.http.cut import Answer
from forkjoin_server.http.starting import equip
from forkjoin_server.operate import metrics, scrapes
from forkjoin_server.operate.lifecycle import Cut, Lifecycle
from forkjoin_server.routes import GENERATING, HEALTH, STORED
from forkjoin_server.vllm_seam.request.authentication import without_authentication

_DRAINING = "the server is shutting down and takes no new requests: send it again, or elsewhere"
_CUT = "the server has shut down before this answer was over: ask again, or elsewhere"
_RETRY = [(b"retry-after", b"1")]


class ForkJoinMiddleware:
    """Wraps vLLM's FastAPI application: keys, readiness and drains outside of all middleware, bodies inside.

    So nothing is read of a request without an API key, nor of one that vLLM's own middleware refuses.
    """

    def __init__(self, app: App) -> None:
        app, digests = without_authentication(app)
        self.access = Access(digests)
        self.app = _with_innermost(app, BodyMiddleware)
        self.lifecycle = Lifecycle()
        self._starting: asyncio.Task[None] | None = None
        self._scrapes = scrapes.Scrapes()
        if metrics.SERVER.observe not in FEEDS.observers:
            FEEDS.observers.append(metrics.SERVER.observe)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            self.access.start(scope)
            trials = equip(scope)
            self._starting = asyncio.create_task(self.lifecycle.start(scope["app"].state))
            try:
                await self.app(scope, receive, send)
            finally:
                if trials is not None:
                    trials.close()
            return
        try:
            visit = Visit(self.access.tenant(scope))
        except NotAllowed as error:
            await refuse(error, scope, send)
            return
        VISIT.set(visit)
        if scope["type"] != "http":
            if _is_mounted(scope):
                await send({"type": "websocket.close"})
            else:
                await self.app(scope, receive, send)
            return
        path = route_path(scope)
        if path == "/ready":
            reason = self.lifecycle.not_ready(scope["app"].state)
            body: Json = {"ready": True} if reason is None else {"ready": False, "reason": reason}
            await own_responses.respond(send, 200 if reason is None else 503, body)
        elif path in HEALTH and (reason := self.lifecycle.unhealthy(scope["app"].state)) is not None:
            await own_responses.respond(send, 503, {"reason": reason})
        elif (page := self.access.playground) is not None and page.answers(scope, path):
            await page.respond(scope, path, send)
        elif path in scrapes.PATHS and scope["method"] != "POST":
            await self._scrapes.answer(self.app, scope, receive, send)
        elif scope["method"] != "POST" and not path.startswith(STORED):
            await self.app(scope, receive, send)
        elif self.lifecycle.is_draining and _is_new_work(scope["method"], path):
            await own_responses.respond(send, 503, own_responses.error(_DRAINING, path, 503), _RETRY)
        else:
            with self.lifecycle.request():
                await self._in_turn(visit, path, scope, receive, send)

    async def _in_turn(self, visit: Visit, path: str, scope: Message, receive: Receive, send: Send) -> None:
        """Answer, or say at once that too much waits."""
        if scope["method"] != "POST":
            await self._in_time(path, scope, receive, send)
            return
        try:
            if path in GENERATING:
                BACKLOG.arrive(visit)
        except Overloaded as error:
            await entrance.refuse(error, path, send)
            return
        way = Entrance(visit, path, send)
        try:
            await self._in_time(path, scope, receive, way.send)
        except Exception:  # whatever vLLM makes of a refusal: its client gets the refusal
            if visit.refused is None:
                raise
        finally:
            BACKLOG.leave(visit)
        await way.end()

    async def _in_time(self, path: str, scope: Message, receive: Receive, send: Send) -> None:
        """Answer, or say that a drain had no time for it."""
        answer = Answer(send)
        try:
            async with self.lifecycle.answering():
                await self.app(scope, receive, answer.send)
        except Cut:
            if answer.has_begun:
                await answer.end(path, own_responses.error(_CUT, path, 503))
            else:
                await own_responses.respond(send, 503, own_responses.error(_CUT, path, 503), _RETRY)


def _with_innermost(app: Any, middleware: Callable[[App], App]) -> App:
    """``app``, a chain of middleware around routes, with ``middleware`` in it next to the routes.

    Starlette's ``ExceptionMiddleware`` stands around the routes. It makes responses of what they raise,
    so those pass ``middleware`` too.
    """
    outer = app
    while (inner := getattr(outer, "app", None)) is not None:
        if isinstance(inner, ExceptionMiddleware):
            outer.app = middleware(inner)
            return cast("App", app)
        outer = inner
    return middleware(app)


def _is_mounted(scope: Message) -> bool:
    """Whether an application below the routes answers; vLLM's (``/metrics``) fail at all that is not HTTP."""
    mounts = [route for route in scope["app"].routes if isinstance(route, Mount)]
    return any(mount.matches(scope)[0] is Match.FULL for mount in mounts)


def _is_new_work(method: str, path: str) -> bool:
    """Whether a drain lets a request wait for another server; what ends a part of an answer is welcome."""
    ends_something = cancelling.asked_at(method, path) or releasing.asked_at(method, path)
    return method == "POST" and ends_something is None
