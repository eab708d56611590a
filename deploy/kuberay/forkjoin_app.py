"""vllm-forkjoin under Ray Serve: each replica is one `forkjoin serve` and passes requests on to it.

A fork tree lives inside one request, so inside one replica: Serve scales by replicas and knows nothing
of threads. The server stays a process of its own, with all its routes, its drain and its streams.
Serve's import path is ``forkjoin_app:app``; its ``args`` are ``{"argv": [flags of forkjoin serve]}``, and
``"command"`` where that is not this Python's.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

FORKJOIN = (sys.executable, "-m", "forkjoin_server.cli", "serve")
#: A start may download and compile a model.
START_S = 1800
#: Longer than the server's own --shutdown-timeout may be.
STOP_S = 600
#: How soon Serve notices that a server has ended, in seconds. It then starts another replica.
HEALTH_CHECK = {"health_check_period_s": 2, "health_check_timeout_s": 5}
#: When a client may ask again: other replicas are there at once, a new one after its start.
RETRY = {"retry-after": "1"}
GONE = "the server of this replica ended: ask again, another replica answers"
CUT = "the server of this replica ended before this answer was over: ask again"
#: Serve says how many requests run at a time (max_ongoing_requests); httpx would let a hundred through. An
#: idle connection is given up before the server closes it, after 5 s: a request on it would find nobody.
LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=20, keepalive_expiry=2)
#: They belong to one connection, not to the message (RFC 9110, section 7.6.1), or the client sets them anew.
HOP_BY_HOP = {"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "host"}


class Replica:
    """One server, from its start to the end of its drain."""

    def __init__(self, argv: Sequence[str], command: Sequence[str] = FORKJOIN) -> None:
        """Start it, and return when it is ready. Raises RuntimeError if it ends before or takes too long."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._process = subprocess.Popen([*command, *argv, "--host", "127.0.0.1", "--port", str(port)])  # noqa: S603
        # An answer takes as long as it takes: a client that has enough of it leaves.
        self._client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=None, limits=LIMITS)  # noqa: S113
        self._await_ready(f"http://127.0.0.1:{port}/ready")

    async def __call__(self, request: Request) -> Response:
        """What the server answers to ``request``, as it comes."""
        asked = self._client.build_request(
            request.method,
            httpx.URL(path=request.url.path, query=request.url.query.encode()),
            headers=[(k, v) for k, v in request.headers.items() if k not in HOP_BY_HOP],
            content=await request.body(),
        )
        try:
            answer = await self._client.send(asked, stream=True)
        except httpx.TransportError:
            return JSONResponse(_error(GONE), 503, RETRY)
        headers = {k: v for k, v in answer.headers.items() if k not in HOP_BY_HOP}
        return StreamingResponse(_until_closed(answer), answer.status_code, headers)

    def check_health(self) -> None:
        """Raise if the server is gone: Serve then starts a new replica."""
        if (status := self._process.poll()) is not None:
            raise RuntimeError(f"forkjoin serve ended with {status}: its log is this replica's")

    def __del__(self) -> None:
        """Let it drain. Serve calls this when the replica has no requests left, or has waited enough."""
        if hasattr(self, "_process"):
            self._process.terminate()
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()

    def _await_ready(self, url: str) -> None:
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            self.check_health()
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(url, timeout=5).status_code == 200:
                    return
            time.sleep(0.2)
        raise RuntimeError(f"forkjoin serve was not ready within {START_S} s")


async def _until_closed(answer: httpx.Response) -> AsyncIterator[bytes]:
    """The body as it comes. A client that leaves closes it, and the server hears of that.

    An event stream whose server ends in the middle ends with an error as its last event; any other body
    breaks off, which HTTP lets a client see.
    """
    try:
        async for chunk in answer.aiter_raw():
            yield chunk
    except httpx.TransportError:
        if not answer.headers.get("content-type", "").startswith("text/event-stream"):
            raise
        yield f"\n\ndata: {json.dumps(_error(CUT))}\n\n".encode()
    finally:
        await answer.aclose()


def _error(message: str) -> dict[str, Any]:
    """An error as OpenAI's clients read it."""
    return {"error": {"message": message, "type": "ServiceUnavailableError", "param": None, "code": 503}}


def app(args: dict[str, Any]) -> Any:
    """The Serve application of ``args``; a deployment's own options come from Serve's config."""
    from ray import serve

    deployment = serve.deployment(Replica, name="ForkJoin", **HEALTH_CHECK)
    return deployment.bind(args.get("argv", []), args.get("command", FORKJOIN))
