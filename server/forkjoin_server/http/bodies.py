"""The bodies of requests: read within limits, in turn, and handed to whom they concern."""

from __future__ import annotations

from forkjoin_scheduler.errors import BadRequestOptions, Overloaded
from forkjoin_scheduler.policy.backlog import Tenant, Visit
from forkjoin_scheduler.request.compiled import Room
from forkjoin_scheduler.request.visits import BACKLOG, VISIT
from forkjoin_scheduler.settings import KEY, Settings
from forkjoin_server import own_responses
from forkjoin_server.access import entrance
from forkjoin_server.access.guard import route_path
from forkjoin_server.access.preparing import Preparing
from forkjoin_server.access.settings import OverloadSettings
from forkjoin_server.answer import releasing
from forkjoin_server.answer.stored import AnothersResponse, StoredResponses
from forkjoin_server.asgi import App, Json, Message, Receive, Send
from forkjoin_server.http import cancelling
from forkjoin_server.http.app_state import client_of, flag_in, settings_of, vllm_config_of
from forkjoin_server.http.error_bodies import ErrorBodies, texts
from forkjoin_server.http.generating import Generating, max_request_tokens, served_tenant
from forkjoin_server.http.overview import Overview
from forkjoin_server.request import incoming
from forkjoin_server.request.incoming import MIB, BodySettings, BodyStalled, BodyTooLarge
from forkjoin_server.request.scoring import check_scoring, count_parts
from forkjoin_server.request.shape import check_request_id, read_json
from forkjoin_server.routes import GENERATING, SCORING, misplaced, route_of

#: The rest of a body that was not read is not to be taken for another request.
_CLOSE = [(b"connection", b"close")]
_WITH_BODY = ("POST", "PUT", "PATCH")


class BodyMiddleware:
    """Reads each body, answers what is ours to answer, and lets ``app`` answer the rest."""

    def __init__(self, app: App) -> None:
        self.app = app
        self._preparing, self._kept = Preparing(), incoming.Kept()
        self._settings: Settings | None = None
        self._stored, self._overview = StoredResponses(), Overview()
        self._generating = Generating(app, self._stored)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                self._stored.check_owner(route_path(scope), served_tenant())
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
            await cancelling.respond(thread_id, served_tenant(), client_of(scope), send)
            return
        if (kept_id := releasing.asked_at(scope["method"], route_path(scope))) is not None:
            forks = self._settings_of(scope).dialect is not None
            await releasing.respond(kept_id, served_tenant(), client_of(scope), forks, send)
            return
        path, max_bytes = route_path(scope), _max_bytes(scope, "max_body_mib")
        try:
            incoming.check_length(scope, max_bytes)
            if scope["method"] != "POST" or (_is_upload(scope) and path not in GENERATING):
                await self._pass_on(scope, incoming.Counted(receive, send, max_bytes))
                return
        except BodyTooLarge as error:
            await own_responses.respond(send, 413, own_responses.error(str(error), path, 413), _CLOSE)
            return
        with self._kept.body(_max_bytes(scope, "max_bodies_mib")) as count:
            try:
                raw = await incoming.read(
                    receive, max_bytes, count, flag_in(scope, OverloadSettings, "client_stall_s")
                )
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
        model_config = getattr(vllm_config_of(scope), "model_config", None)
        settings, client = self._settings_of(scope), client_of(scope)
        await self._overview.respond(route_path(scope), settings, client, model_config, visit.tenant, send)

    def _settings_of(self, scope: Message) -> Settings:
        """They stay what they are, and a dialect takes as long to read as a body."""
        if self._settings is None:
            self._settings = settings_of(scope)
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
            given = read_json(raw, flag_in(scope, BodySettings, "max_body_objects"))
        except BadRequestOptions as error:
            await own_responses.respond(send, 400, own_responses.error(str(error), path))
            return
        errors = ErrorBodies(send, lambda: _text(given, raw))
        route = None if given is None else route_of(path, given)
        if given is not None and route is not None:
            await self._generating.answer(route, given, self._settings_of(scope), scope, receive, errors.send)
        elif given is not None and KEY in given:
            await own_responses.respond(send, 400, own_responses.error(misplaced(path), path, param=KEY))
        else:
            # Not ours to judge: vLLM answers a body that is no JSON, and what does not fork.
            try:
                if given is not None and path in GENERATING:
                    self._measure(path, given, len(raw), scope)
            except Overloaded as error:
                await entrance.refuse(error, path, send)
            except BadRequestOptions as error:
                await own_responses.respond(
                    send, 400, own_responses.error(str(error), path, param=error.field)
                )
            else:
                await self.app(scope, incoming.replay(raw, receive), errors.send)

    def _measure(self, path: str, given: Json, num_bytes: int, scope: Message) -> None:
        """Count the prompts that vLLM makes of ``given``. Raises Overloaded or BadRequestOptions."""
        # each of them has the request's id in its own
        for request_id in (given.get("request_id"), *_request_ids(scope)):
            check_request_id(request_id)
        if (visit := VISIT.get()) is not None:
            visit.num_families = visit.num_prompts = count_parts(given, path)
            BACKLOG.announce(visit)
        client = client_of(scope)
        if path == SCORING and client is not None and (tokenizer := client.renderer.tokenizer) is not None:
            max_model_len = client.model_config.max_model_len
            room = Room(max_model_len, tokenizer.max_chars_per_token)
            check_scoring(given, num_bytes, room, max_request_tokens(self._settings_of(scope), max_model_len))

    async def _pass_on(self, scope: Message, counted: incoming.Counted) -> None:
        """Let the application read a body that is none of ours. Raises BodyTooLarge."""
        try:
            await self.app(scope, counted.receive, counted.send)
        finally:
            counted.check()


def _max_bytes(scope: Message, limit: str) -> int:
    """What the operator gave as ``limit``, one of BodySettings, in bytes."""
    mib: int = flag_in(scope, BodySettings, limit)
    return MIB * mib


def _request_ids(scope: Message) -> list[str]:
    return [value.decode("latin-1") for name, value in scope["headers"] if name == b"x-request-id"]


def _text(given: Json | None, raw: bytes) -> str:
    """What came in, for an error to be compared with."""
    return "\n".join(texts(given)) if given is not None else raw.decode(errors="replace")


def _is_upload(scope: Message) -> bool:
    """Whether the body is a form with files, which holds no field of ours.

    Of several such headers the first counts, as for Starlette, which reads the body for vLLM.
    """
    kinds = (value for name, value in scope["headers"] if name == b"content-type")
    return next(kinds, b"").lower().startswith(b"multipart/")
