"""A replica's life: ``/ready`` and ``/health``, the line that says it is up, and the drain that ends it."""

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

from forkjoin_scheduler.publish import event_log
from forkjoin_server.operate.engine_watch import EngineWatch
from forkjoin_server.operate.in_flight import FILE, InFlight
from forkjoin_server.operate.orphans import FAILURE_S, end_within

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
    cut: without an engine it would never end, and the HTTP server would wait for it forever.

    A server whose engine has died ends with status 1, on whichever way it comes to its end: vLLM's own
    ends it with 0, once each request in flight has been answered, if ever.
    """

    def __init__(self) -> None:
        self.is_draining = False
        self._has_failed = False
        self._has_shut_down = False
        self._watch: EngineWatch | None = None
        self._watching: asyncio.Task[None] | None = None
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
        self._watch = EngineWatch(client)
        client.shutdown = self._ending(client, self._watch)
        self._watching = asyncio.create_task(self._end_with_the_engine(state, self._watch))
        while self.not_ready(state) is not None:
            await asyncio.sleep(POLL_S)
        if multiprocessing.current_process().name in ("MainProcess", "ApiServer_0"):
            text = announcement(state.args, client.model_config.served_model_name)
            if state.args.forkjoin_log_format == "json":
                LOG.info(text.strip())
            else:
                print(text, flush=True)

    def not_ready(self, state: Any) -> str | None:
        """Why the server takes no requests, or can't answer them; None if it can."""
        if self.is_draining:
            return "the server is shutting down"
        server = getattr(state, "server", None)
        if server is None or not server.started or self._watch is None:
            return "the server is starting"
        if server.should_exit:
            return "the server is shutting down"
        if not self._watch.has_been_answered:
            return "the engine has not answered yet"
        return self._watch.complaint(state.args.forkjoin_ready_timeout)

    def unhealthy(self, state: Any) -> str | None:
        """Why the server should be started again; None if vLLM is to say whether it should."""
        return None if self._watch is None else self._watch.complaint(state.args.forkjoin_health_timeout)

    async def _end_with_the_engine(self, state: Any, watch: EngineWatch) -> None:
        """End the server once its engine has died, unless the operator has it stay (as in vLLM)."""
        death = await watch.run(state.args.forkjoin_health_timeout)
        if death is None or int(os.environ.get("VLLM_KEEP_ALIVE_ON_ENGINE_DEATH", "0")):
            return
        LOG.critical("%s: the server ends, with status 1", death)
        self.is_draining = self._has_failed = True
        end_within(FAILURE_S)
        self._cut()
        state.server.should_exit = True

    def _ending(self, client: Any, watch: EngineWatch) -> Callable[..., None]:
        shutdown: Callable[..., None] = client.shutdown

        def end(timeout: float | None = None) -> None:
            """Runs in a thread of its own: the event loop goes on answering.

            Raises SystemExit with status 1 if the engine has died.
            """
            if self._has_shut_down:  # vLLM is not content with once
                shutdown(timeout=timeout)
                return
            self._has_shut_down = self.is_draining = True
            left = timeout if self._has_failed or client.errored else self._drain(timeout)
            watch.stop()
            if self._has_failed or client.errored:
                shutdown(timeout=0)
                raise SystemExit(1)
            _cancel(client.output_handler)
            shutdown(timeout=left)

        return end

    def _drain(self, timeout: float | None) -> float | None:
        """Wait until all is answered, or cut what is not. Returns what is left of ``timeout``."""
        end = time.monotonic() + (timeout or 0)
        self._wait_for_answers(end)
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._cut)
        if num_cut := len(self._limits):
            self._wait_for_answers(time.monotonic() + CUT_S)
            LOG.warning("drained: the time was up for %d requests, which were cut", num_cut)
        else:
            LOG.info("drained: all requests in flight were answered")
        return None if timeout is None else max(end - time.monotonic(), 0)

    def _wait_for_answers(self, end: float) -> None:
        while self._in_flight.is_any() and time.monotonic() < end:
            time.sleep(POLL_S)

    def _cut(self) -> None:
        self._is_time_up = True
        for limit in self._limits:
            limit.reschedule(asyncio.get_running_loop().time())


def _cancel(task: asyncio.Task[Any] | None) -> None:
    """Cancel ``task`` from any thread.

    vLLM's output handler would take the end of the engine for a fault, with a traceback.
    """
    if task is not None and not task.get_loop().is_closed():
        task.get_loop().call_soon_threadsafe(task.cancel)


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
    # A browser finds no Unix socket.
    has_page = not (args.uds or args.forkjoin_no_playground)
    see = f"See it think at {address}/playground, or try" if has_page else "Try"
    return (
        f"\nvllm-forkjoin serves {model} at {address}. {see}:\n\n"
        f"curl -sN{socket} {address}/v1/chat/completions -H 'content-type: application/json' \\\n"
        f"  -d '{json.dumps(body)}'\n"
    )
