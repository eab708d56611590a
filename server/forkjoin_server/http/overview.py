"""Answers ``GET /v1/forkjoin`` and ``GET /v1/forkjoin/families``: how the server forks, and what it does.

It stands next to vLLM's routes, so that what vLLM puts around those is around these, too: CORS, above all.
"""

from __future__ import annotations

from typing import Any

from forkjoin_scheduler.policy.backlog import Tenant
from forkjoin_scheduler.settings import Settings
from forkjoin_server import own_responses
from forkjoin_server.asgi import Json, Message, Send
from forkjoin_server.http import about
from forkjoin_server.http import families as families_route
from forkjoin_server.http.families import Families, NoAnswer

_NO_FAMILIES = "expected a server that forks, this one was started with --dialect none: it has no families"
_RETRY = [(b"retry-after", b"1")]


class Overview:
    """``settings`` and the engine's configuration stay what they are: what follows from them is made once."""

    def __init__(self) -> None:
        self._about: Json | None = None
        self._families: Families | None = None

    def answers(self, scope: Message, path: str) -> bool:
        """Whether a request is for one of its routes."""
        return scope["method"] == "GET" and path in (about.PATH, families_route.PATH)

    async def respond(
        self, path: str, settings: Settings, client: Any, model_config: Any, tenant: Tenant, send: Send
    ) -> None:
        """Answer ``tenant`` at ``path``; ``client``: vLLM's engine client, None where there is no engine."""
        if path == families_route.PATH:
            await self._show_families(settings, client, tenant, send)
            return
        if self._about is None:
            self._about = about.about(model_config, settings)
        await own_responses.respond(send, 200, self._about)

    async def _show_families(self, settings: Settings, client: Any, tenant: Tenant, send: Send) -> None:
        path = families_route.PATH
        if client is None or settings.dialect is None:
            await own_responses.respond(send, 404, own_responses.error(_NO_FAMILIES, path, 404))
            return
        if self._families is None:
            self._families = Families(client.engine_core)
        try:
            await own_responses.respond(send, 200, await self._families.shown_to(tenant))
        except NoAnswer as error:
            await own_responses.respond(send, 503, own_responses.error(str(error), path, 503), _RETRY)
