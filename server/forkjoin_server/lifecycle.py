"""A replica's life: ``GET /ready``, the line that says it is up, and the drain that ends it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import multiprocessing
import os
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from forkjoin_scheduler import event_log
from forkjoin_server.in_flight import FILE, InFlight

#: Beneath vLLM's, whose handler, level and format it so has.
LOG = logging.getLogger("vllm.forkjoin.server")
POLL_S = 0.05
#: What is cut when a drain's time is up may take so long to tell its clients.
CUT_S = 5

#: What to ask the embedded model; any other model gets a greeting.
EMBEDDED_QUESTION = "a=482*731, b=7*8, c=9047*36"


class Cut(Exception):
    """The drain's time is up before a request was answered."""


class Lifecycle:
    """Knows whether the server drains, and which requests are in flight.

    vLLM shuts its engine down as soon as SIGTERM comes, and the HTTP server behind it. The engine
    client's ``shutdown`` is wrapped, so that what is in flight is answered first. What then is left is
    cut: without an engine it would never end, and the HTTP server would wait for it for ever.
    """

    def __init__(self) -> None:
        self.is_draining = False
        self._in_flight = InFlight(os.environ.get(FILE))
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_time_up = False
        #: What can be cut.
        self._limits: set[asyncio.Timeout] = set()

    def request(self) -> contextlib.AbstractContextManager[None]:
        """A request that a drain waits for."""
        return self._in_flight.request()

    @contextlib.asynccontextmanager
    async def answering(self) -> AsyncIterator[None]:
        """What is done inside ends with Cut when the time of a drain is up, or already was."""
        limit = asyncio.timeout(0 if self._is_time_up else None)
        try:
            async with limit:
                self._limits.add(limit)
                yield
        except TimeoutError:
            if limit.expired():
                raise Cut from None
            raise
        finally:
            self._limits.discard(limit)

    async def start(self, state: Any) -> None:
        """Wrap the engine client of vLLM's ``app.state``, and announce the server when it is ready."""
        client = getattr(state, "engine_client", None)
        if client is None:
            return
        if state.args.enable_log_requests:
            event_log.switch_on()
        self._loop = asyncio.get_running_loop()
        client.shutdown = self._draining(client.shutdown)
        while not await self.is_ready(state):
            await asyncio.sleep(POLL_S)
        if multiprocessing.current_process().name in ("MainProcess", "ApiServer_0"):
            text = announcement(state.args, client.model_config.served_model_name)
            if state.args.forkjoin_log_format == "json":
                LOG.info(text.strip())
            else:
                print(text, flush=True)

    async def is_ready(self, state: Any) -> bool:
        """Whether the engine answers, and the server takes requests."""
        client, server = getattr(state, "engine_client", None), getattr(state, "server", None)
        if self.is_draining or client is None or server is None or not server.started or server.should_exit:
            return False
        try:
            await client.check_health()
        except Exception:  # whatever the engine died of: it is not ready
            return False
        return True

    def _draining(self, shutdown: Callable[..., None]) -> Callable[..., None]:
        def drain(timeout: float | None = None) -> None:
            """Runs in a thread of its own: the event loop goes on answering."""
            self.is_draining = True
            end = time.monotonic() + (timeout or 0)
            self._wait_for_answers(end)
            if self._loop is not None and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._cut)
            if self._limits:
                self._wait_for_answers(time.monotonic() + CUT_S)
            left = None if timeout is None else max(end - time.monotonic(), 0)
            shutdown(timeout=left)

        return drain

    def _wait_for_answers(self, end: float) -> None:
        while self._in_flight.is_any() and time.monotonic() < end:
            time.sleep(POLL_S)

    def _cut(self) -> None:
        self._is_time_up = True
        for limit in self._limits:
            limit.reschedule(asyncio.get_running_loop().time())


def announcement(args: Any, model: str) -> str:
    """The address of the server and a request to try, from vLLM's parsed ``args``."""
    socket = ""
    if args.uds:
        address, socket = "http://localhost", f" --unix-socket {args.uds}"
    else:
        host = args.host if args.host not in (None, "", "0.0.0.0", "::") else "localhost"  # noqa: S104
        scheme = "https" if args.ssl_keyfile else "http"
        address = f"{scheme}://{f'[{host}]' if ':' in host else host}:{args.port}"
    body = {
        "model": model,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_threads": True, "include_usage": True},
        "messages": [{"role": "user", "content": EMBEDDED_QUESTION if model == "abacus" else "Hello!"}],
    }
    return (
        f"\nvllm-forkjoin serves {model} at {address}. Try:\n\n"
        f"curl -sN{socket} {address}/v1/chat/completions -H 'content-type: application/json' \\\n"
        f"  -d '{json.dumps(body)}'\n"
    )
