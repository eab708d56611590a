"""vllm-forkjoin under Ray Serve: each replica is one `forkjoin serve` and passes requests on to it.

A fork tree lives inside one request, so inside one replica: Serve scales by replicas and knows nothing
of threads. The server stays a process of its own, with all its routes, its drain and its streams.
Serve's import path is ``forkjoin_app:app``; its ``args`` are ``{"argv": [flags of forkjoin serve]}``.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

FORKJOIN = (sys.executable, "-m", "forkjoin_server.cli", "serve")
#: A start may download and compile a model.
START_S = 1800
#: Longer than the server's own --shutdown-timeout may be.
STOP_S = 600
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
        self._client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=None)  # noqa: S113
        self._await_ready(f"http://127.0.0.1:{port}/ready")

    async def __call__(self, request: Request) -> Response:
        """What the server answers to ``request``, as it comes."""
        asked = self._client.build_request(
            request.method,
            httpx.URL(path=request.url.path, query=request.url.query.encode()),
            headers=[(k, v) for k, v in request.headers.items() if k not in HOP_BY_HOP],
            content=await request.body(),
        )
        answer = await self._client.send(asked, stream=True)
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
    """The body as it comes. A client that leaves closes it, and the server hears of that."""
    try:
        async for chunk in answer.aiter_raw():
            yield chunk
    finally:
        await answer.aclose()


def app(args: dict[str, Any]) -> Any:
    """The Serve application of ``args``; a deployment's own options come from Serve's config."""
    from ray import serve

    return serve.deployment(Replica, name="ForkJoin").bind(args.get("argv", []))
