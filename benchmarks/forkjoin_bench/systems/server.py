"""A server over HTTP, in processes of its own, and the one thing that is asked of it: completions."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from forkjoin_bench.ports import free_port
from forkjoin_bench.systems.base import CpuSeconds
from forkjoin_bench.systems.records import RecordReader
from forkjoin_bench.vllm_seam.serving import RECORD_VARIABLE

START_S, STOP_S = 1800, 60


class ServerFailed(RuntimeError):
    """A server did not start, or refused a request; the message has what it said."""


class Server:
    """``python -m forkjoin_bench.vllm_seam.serving KIND ARGS`` on a free port of the loopback."""

    def __init__(self, name: str, kind: str, argv: list[str], env: dict[str, str], folder: Path) -> None:
        self.log = folder / f"{name}.log"
        self._command = [sys.executable, "-m", "forkjoin_bench.vllm_seam.serving", kind, *argv]
        self._records = RecordReader(folder / f"{name}.steps.jsonl")
        self._env = (
            os.environ
            | env
            | {
                "VLLM_SERVER_DEV_MODE": "1",  # for /reset_prefix_cache
                RECORD_VARIABLE: str(self._records.path),
            }
        )
        self._process: subprocess.Popen[bytes] | None = None
        self._session: aiohttp.ClientSession | None = None
        self.take_steps = self._records.take
        self.start_s: float | None = None

    @property
    def cpu_s(self) -> CpuSeconds:
        assert self._process is not None
        first = psutil.Process(self._process.pid)
        times = [process.cpu_times() for process in (first, *first.children(recursive=True))]
        seconds = [t.user + t.system for t in times]
        return CpuSeconds(sum(seconds), seconds[0])

    @property
    def num_blocks(self) -> int:
        return self._records.num_blocks

    async def start(self) -> None:
        """Start, and return when it answers. Raises ServerFailed."""
        port = free_port()
        self._records.path.unlink(missing_ok=True)
        address = ["--host", "127.0.0.1", "--port", str(port)]
        began = time.monotonic()
        with self.log.open("w") as out:
            # A group of its own, to end it as one, but the client's session: by these Linux shares cores out.
            self._process = subprocess.Popen(  # noqa: S603 - our own command
                [*self._command, *address], stdout=out, stderr=out, env=self._env, process_group=0
            )
        self._session = aiohttp.ClientSession(
            f"http://127.0.0.1:{port}",
            # uvicorn closes a connection that was idle for 5 s; who reuses it in that moment is disconnected
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=2),
            timeout=aiohttp.ClientTimeout(total=None),
        )
        deadline = began + START_S
        while not await self._is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise ServerFailed(f"{self.log.name}: the server did not start:\n{self._said()}")
            await asyncio.sleep(0.25)
        self.start_s = time.monotonic() - began

    async def _is_ready(self) -> bool:
        assert self._session is not None
        try:
            async with self._session.get("/health") as response:
                return response.status == 200
        except aiohttp.ClientError:
            return False

    def _said(self) -> str:
        return self.log.read_text(errors="replace")[-4000:]

    async def stop(self) -> None:
        """End it and all that it started."""
        if self._session is not None:
            await self._session.close()
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(self._process.wait, STOP_S)
        # Its engine is in the same group; whatever is left of it goes too.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    async def reset_prefix_cache(self) -> None:
        assert self._session is not None
        for _ in range(50):
            async with self._session.post("/reset_prefix_cache") as response:
                if response.status == 200 and (await response.json())["success"]:
                    return
            await asyncio.sleep(0.1)
        raise ServerFailed(f"{self.log.name}: blocks are still held 5 s after the last answer")

    async def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """The first choice of a completion. Raises ServerFailed if it is refused."""
        choice: dict[str, Any] = (await self.answer(body))["choices"][0]
        return choice

    async def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        """A completion, whole. Raises ServerFailed if it is refused."""
        assert self._session is not None
        async with self._session.post("/v1/completions", json=body) as response:
            await self._check(response)
            answer: dict[str, Any] = await response.json()
            return answer

    async def stream(self, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """The first choice of each chunk of a completion. Raises ServerFailed if it is refused."""
        assert self._session is not None
        async with self._session.post("/v1/completions", json=body | {"stream": True}) as response:
            await self._check(response)
            async for line in response.content:
                if line.startswith(b"data: {"):
                    chunk = json.loads(line[6:])
                    if "error" in chunk:
                        raise ServerFailed(f"{self.log.name}: {chunk['error']}")
                    for choice in chunk["choices"]:
                        yield choice

    async def _check(self, response: aiohttp.ClientResponse) -> None:
        if response.status != 200:
            raise ServerFailed(f"{self.log.name}: {response.status}: {await response.text()}")
