"""Fork/join around vLLM's routes: the request's field in, threads and the right usage out.

An ASGI middleware, so that vLLM's handlers stay as they are: ``request/`` says what vLLM gets
to read, ``answer/`` writes what it answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.routing import Match, Mount

from forkjoin_scheduler.dialects.dialect import Dialect
from forkjoin_scheduler.errors import BadRequestOptions, Overloaded
from forkjoin_scheduler.policy.backlog import Tenant, Visit
from forkjoin_scheduler.publish.feed import FEEDS, new_key
from forkjoin_scheduler.request.visits import BACKLOG, VISIT
from forkjoin_scheduler.settings import KEY, Settings
from forkjoin_server import own_responses
from forkjoin_server.access import entrance
from forkjoin_server.access.access import Access
from forkjoin_server.access.entrance import Entrance
from forkjoin_server.access.guard import NotAllowed, refuse, route_path
from forkjoin_server.access.preparing import Preparing
from forkjoin_server.access.settings import OverloadSettings
from forkjoin_server.answer import agents
from forkjoin_server.answer.chat import ChatThreads
from forkjoin_server.answer.responses import ResponseThreads
from forkjoin_server.answer.stored import AnothersResponse, StoredResponses, feed_of
from forkjoin_server.answer.threads import ThreadLog
from forkjoin_server.answer.tokens import TokenThreads
from forkjoin_server.answer.weaver import Presenter, Unseen, Weaver
from forkjoin_server.asgi import App, Json, Message, Receive, Send
from forkjoin_server.http import cancelling
from forkjoin_server.http.cut import Answer
from forkjoin_server.http.error_bodies import ErrorBodies, texts
from forkjoin_server.http.hangup import noticing
from forkjoin_server.http.openapi import publish
from forkjoin_server.http.overview import Overview
from forkjoin_server.http.turns import give_turns
from forkjoin_server.operate import metrics, scrapes
from forkjoin_server.operate.lifecycle import Cut, Lifecycle
from forkjoin_server.operate.logs import REQUEST_ID
from forkjoin_server.request import incoming
from forkjoin_server.request.field import DEFAULTS, count_answers, prepare, sampling_of
from forkjoin_server.request.grammar_trials import Trials
from forkjoin_server.request.grammars import check_grammars
from forkjoin_server.request.handover import Asked, compiled, handing_over, install
from forkjoin_server.request.incoming import MIB, BodySettings, BodyStalled, BodyTooLarge
from forkjoin_server.request.shape import check_beside_prompt, check_request_id, read_json
from forkjoin_server.request.wrong_bodies import stop_at_first_wrong_item
from forkjoin_server.routes import GENERATE, GENERATING, HEALTH, RESPONSES, STORED, misplaced, route_of
from forkjoin_server.vllm_seam.request.authentication import without_authentication
from forkjoin_server.vllm_seam.request.control_tokens import make_text_of_control_tokens
from forkjoin_server.vllm_seam.request.failed_requests import name_failed_requests
from forkjoin_server.vllm_seam.request.grammar_library import (
    keep_to_one_library,
    refuse_what_it_does_not_take,
    try_grammars,
)
from forkjoin_server.vllm_seam.request.reasoning import has_reasoning_parser
from forkjoin_server.vllm_seam.request.refusals import log_refusals_in_a_line
from forkjoin_server.vllm_seam.request.request_heads import bound_heads
from forkjoin_server.vllm_seam.request.responses import stores_responses
from forkjoin_server.vllm_seam.request.text_lengths import bound_texts
from forkjoin_server.vllm_seam.request.tool_calls import parse_token_by_token

_DRAINING = "the server is shutting down and takes no new requests: send it again, or elsewhere"
_CUT = "the server has shut down before this answer was over: ask again, or elsewhere"
_RETRY = [(b"retry-after", b"1")]
#: The rest of a body that was not read is not to be taken for another request.
_CLOSE = [(b"connection", b"close")]
_WITH_BODY = ("POST", "PUT", "PATCH")
#: What all answers to a request may come to, unless the operator says: as much as that many full contexts.
_MAX_CONTEXTS = 256


class ForkJoinMiddleware:
    """Wraps vLLM's FastAPI application: keys, readiness and drains outside of all middleware, bodies inside.

    So nothing is read of a request without an API key, nor of one that vLLM's own middleware refuses.
    """

    def __init__(self, app: App) -> None:
        app, digests = without_authentication(app)
        self.access = Access(digests)
        self.app = _with_innermost(app, Bodies)
        self.lifecycle = Lifecycle()
        self._starting: asyncio.Task[None] | None = None
        self._trials: Trials | None = None
        self._scrapes = scrapes.Scrapes()
        if metrics.SERVER.observe not in FEEDS.observers:
            FEEDS.observers.append(metrics.SERVER.observe)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            self.access.start(scope)
            publish(scope["app"])
            stop_at_first_wrong_item(scope["app"])
            if (client := _client(scope)) is not None:
                install(client)
                give_turns(client)
                settings = _settings(scope)
                _start_metrics(scope, client, settings.dialect)
                make_text_of_control_tokens(client, scope["app"].state.vllm_config, settings)
                bound_texts(client)
                keep_to_one_library(client)
                self._trials = try_grammars(client)
            refuse_what_it_does_not_take()
            name_failed_requests()
            log_refusals_in_a_line(scope["app"].state)
            bound_heads(scope["app"].state, _stall_s(scope))
            parse_token_by_token()
            self._starting = asyncio.create_task(self.lifecycle.start(scope["app"].state))
            try:
                await self.app(scope, receive, send)
            finally:
                if self._trials is not None:
                    self._trials.close()
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
        except Exception:  # whatever vLLM makes of a refusal: its client is told of that
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


class Bodies:
    """Takes the request's field out of each POST's body, and weaves threads into the answer."""

    def __init__(self, app: App) -> None:
        self.app = app
        self._preparing, self._kept = Preparing(), incoming.Kept()
        self._settings: Settings | None = None
        self._stored, self._overview = StoredResponses(), Overview()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                self._stored.check_owner(route_path(scope), _tenant())
            except AnothersResponse as error:
                await own_responses.respond(send, 404, error.body, _CLOSE)
                return
            if stored := self._stored.weaver(route_path(scope), send):
                send = stored.send
        if scope["type"] == "http" and self._overview.answers(scope, route_path(scope)):
            await self._look(scope, send)
            return
        if scope["type"] != "http" or scope["method"] not in _WITH_BODY:
            await self.app(scope, receive, send)
            return
        if (thread_id := cancelling.asked_at(scope["method"], route_path(scope))) is not None:
            await cancelling.respond(thread_id, _tenant(), _client(scope), send)
            return
        path, max_bytes = route_path(scope), _body_bytes(scope, "max_body_mib")
        try:
            incoming.check_length(scope, max_bytes)
            if scope["method"] != "POST" or (_is_upload(scope) and path not in GENERATING):
                await self._pass_on(scope, incoming.Counted(receive, send, max_bytes))
                return
        except BodyTooLarge as error:
            await own_responses.respond(send, 413, own_responses.error(str(error), path, 413), _CLOSE)
            return
        with self._kept.body(_body_bytes(scope, "max_bodies_mib")) as count:
            try:
                raw = await incoming.read(receive, max_bytes, count, _stall_s(scope))
            except BodyTooLarge as error:
                await own_responses.respond(send, 413, own_responses.error(str(error), path, 413), _CLOSE)
            except BodyStalled as error:
                await own_responses.respond(send, 408, own_responses.error(str(error), path, 408), _CLOSE)
            except Overloaded as error:
                await entrance.refuse(error, path, send)
            else:
                await self._take_turn(path, raw, scope, receive, send)

    async def _look(self, scope: Message, send: Send) -> None:
        visit = VISIT.get() or Visit(Tenant())
        model_config = getattr(_vllm_config(scope), "model_config", None)
        settings, client = self._settings_of(scope), _client(scope)
        await self._overview.respond(route_path(scope), settings, client, model_config, visit.tenant, send)

    def _settings_of(self, scope: Message) -> Settings:
        """They stay what they are, and a dialect takes as long to read as a body."""
        if self._settings is None:
            self._settings = _settings(scope)
        return self._settings

    async def _take_turn(self, path: str, raw: bytes, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a POST by its body, ``raw``: what is work for the engine in its turn."""
        if path in GENERATING:
            async with self._preparing.of(VISIT.get() or Visit(Tenant())):
                await self._answer(path, raw, scope, receive, send)
        else:
            await self._answer(path, raw, scope, receive, send)

    async def _answer(self, path: str, raw: bytes, scope: Message, receive: Receive, send: Send) -> None:
        try:
            given = read_json(raw, _max_body_objects(scope))
        except BadRequestOptions as error:
            await own_responses.respond(send, 400, own_responses.error(str(error), path))
            return
        errors = ErrorBodies(send, lambda: _text(given, raw))
        route = None if given is None else route_of(path, given)
        if given is not None and route is not None:
            await self._generate(route, given, scope, receive, errors.send)
        elif given is not None and KEY in given:
            await own_responses.respond(send, 400, own_responses.error(misplaced(path), path, param=KEY))
        else:
            # Not ours to judge: vLLM answers a body that is no JSON, and what does not generate.
            await self.app(scope, _replay(raw, receive), errors.send)

    async def _pass_on(self, scope: Message, counted: incoming.Counted) -> None:
        """Let the application read a body that is none of ours. Raises BodyTooLarge."""
        try:
            await self.app(scope, counted.receive, counted.send)
        finally:
            counted.check()

    async def _generate(self, path: str, given: Json, scope: Message, receive: Receive, send: Send) -> None:
        settings = self._settings_of(scope)
        key, client = new_key(), _client(scope)
        try:
            scope = _with_request_id(scope, given.get("request_id"), key)
            check_grammars(given)
            given, as_agents = agents.take(given, path)
            reasons = has_reasoning_parser(_vllm_config(scope))
            body, options = prepare(given, path, key, settings, reasons=reasons)
            data = _encoded(body)
            num_answers, num_choices = count_answers(sampling_of(body, path))
            check_beside_prompt(body, len(data), num_answers)
            asked = Asked(await compiled(options, client), _max_tokens(settings, client))
            if path == RESPONSES and stores_responses():
                self._stored.claim(body, _tenant())
        except AnothersResponse as error:
            await own_responses.respond(send, 404, error.body)
            return
        except BadRequestOptions as error:
            await own_responses.respond(send, 400, own_responses.error(str(error), path, param=error.field))
            return
        if (visit := VISIT.get()) is not None:
            visit.num_families, visit.width = max(num_answers, 1), options.width
        REQUEST_ID.set(_request_id(scope))
        is_wanted, feed = options.include_threads, feed_of(body, path, key)
        queue = FEEDS.subscribe(feed)
        log = ThreadLog(key, num_answers, num_choices, is_wanted=is_wanted, has_token_ids=path == GENERATE)
        present = as_agents or _presenter(path)
        receive, send = noticing(receive, send, _request_id(scope))
        weaver = Weaver(send, queue, log, present(log) if is_wanted else Unseen())
        is_stored = path == RESPONSES and stores_responses()
        if is_stored:
            weaver.at_end = partial(self._stored.keep, body, weaver, present)
        pump = asyncio.create_task(weaver.pump())
        try:
            with handing_over(asked):
                await self.app(scope, _replay(data, receive), weaver.send)
        finally:
            pump.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await pump
            if is_stored:
                self._stored.answered(body, weaver, feed, present)
            else:
                FEEDS.unsubscribe(feed)


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
    return method == "POST" and cancelling.asked_at(method, path) is None


def _settings(scope: Message) -> Settings:
    """The dialect and the limits, as the operator gave them to the engine."""
    vllm_config = _vllm_config(scope)
    given = vllm_config.additional_config.get(KEY) if vllm_config is not None else None
    return Settings.model_validate(given) if given else DEFAULTS


def _tenant() -> str:
    """Who is being served; all are one where there are no API keys."""
    visit = VISIT.get()
    return "" if visit is None else visit.tenant.id


def _vllm_config(scope: Message) -> Any:
    """VLLM's configuration; None where there is no engine."""
    return getattr(getattr(scope.get("app"), "state", None), "vllm_config", None)


def _client(scope: Message) -> Any:
    """VLLM's engine client; None where there is no engine, as in tests of this file."""
    return getattr(getattr(scope.get("app"), "state", None), "engine_client", None)


def _start_metrics(scope: Message, client: Any, dialect: Dialect | None) -> None:
    """Let each series of this server, which speaks ``dialect``, exist, at 0."""
    model_name = _vllm_config(scope).model_config.served_model_name
    metrics.SERVER.start(model_name, client.engine_core.engine_ranks_managed, dialect)


def _body_bytes(scope: Message, limit: str) -> int:
    """What the operator gave as ``limit``, one of BodySettings, in bytes."""
    args = getattr(getattr(scope.get("app"), "state", None), "args", None)
    mib: int = getattr(args, f"forkjoin_{limit}", getattr(BodySettings(), limit))
    return MIB * mib


def _stall_s(scope: Message) -> float:
    args = getattr(getattr(scope.get("app"), "state", None), "args", None)
    seconds: float = getattr(args, "forkjoin_client_stall_s", OverloadSettings().client_stall_s)
    return seconds


def _max_body_objects(scope: Message) -> int:
    args = getattr(getattr(scope.get("app"), "state", None), "args", None)
    most: int = getattr(args, "forkjoin_max_body_objects", BodySettings().max_body_objects)
    return most


def _max_tokens(settings: Settings, client: Any) -> int | None:
    """What all answers to a request may come to; no limit of ours where fork/join is off."""
    if settings.dialect is None or client is None:
        return None
    return settings.max_request_tokens or _MAX_CONTEXTS * client.model_config.max_model_len


def _text(given: Json | None, raw: bytes) -> str:
    """What came in, for an error to be compared with."""
    return "\n".join(texts(given)) if given is not None else raw.decode(errors="replace")


def _presenter(path: str) -> Callable[[ThreadLog], Presenter]:
    presenters: dict[str, Callable[[ThreadLog], Presenter]]
    presenters = {GENERATE: TokenThreads, RESPONSES: ResponseThreads}
    return presenters.get(path, ChatThreads)


def _is_upload(scope: Message) -> bool:
    """Whether the body is a form with files, which holds no field of ours.

    Of several such headers the first counts, as for Starlette, which reads the body for vLLM.
    """
    kinds = (value for name, value in scope["headers"] if name == b"content-type")
    return next(kinds, b"").lower().startswith(b"multipart/")


def _encoded(body: Json) -> bytes:
    """``body`` as UTF-8. Raises BadRequestOptions for half of a surrogate pair, or too deep a nesting."""
    try:
        return json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = ord(error.object[error.start])
        raise BadRequestOptions(
            f"the body: expected valid Unicode, got half of a surrogate pair, \\u{half:x}"
        ) from error
    except RecursionError as error:
        raise BadRequestOptions("the body: expected lists and objects in fewer of each other") from error


def _with_request_id(scope: Message, in_body: object, key: str) -> Message:
    """``scope`` with our key in the X-Request-Id that vLLM derives its request id from.

    That header goes before a request id in the body, which is kept by putting it there. Raises
    BadRequestOptions for an id that is too long.
    """
    check_request_id(in_body)
    given = [v for k, v in scope["headers"] if k == b"x-request-id"]
    if not given and isinstance(in_body, str) and in_body.isascii() and in_body.isprintable():
        given = [in_body.encode()]
    check_request_id(b"-".join(given).decode("latin-1"))
    value = b"-".join([*given, key.encode()])
    others = [(k, v) for k, v in scope["headers"] if k not in (b"x-request-id", b"content-length")]
    return {**scope, "headers": [*others, (b"x-request-id", value)]}


def _request_id(scope: Message) -> str:
    value: bytes = dict(scope["headers"])[b"x-request-id"]
    return value.decode("latin-1")


def _replay(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` that yields ``body`` once, then what the connection says (disconnects)."""
    sent = False

    async def replay() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
