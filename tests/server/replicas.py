"""Two servers behind a router, and clients that say what they were told: for ``test_replicas.py``."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from forkjoin_bench.ports import free_port
from tests.server.conftest import start_server
from tests.server.reading import SHOWN, Answer, metrics, read_stream, read_whole
from tests.server.turnstile import LIMIT_S, Turnstile

#: Few blocks: what eight requests of one test need, and little more.
FLAGS = (
    "--num-gpu-blocks-override",
    "640",
    "--shutdown-timeout",
    str(LIMIT_S),
    "--enable-server-load-tracking",
    "--enable-prompt-tokens-details",
)


def start_replica(log: Path, number: int, engine: Turnstile):
    """A server on a core of its own, where there are several."""
    cores = sorted(os.sched_getaffinity(0))
    core = str(cores[number % len(cores)])
    env = engine.env | {"VLLM_CPU_OMP_THREADS_BIND": core, "OMP_NUM_THREADS": "1"}
    return start_server(log, *FLAGS, *engine.flags, env=env)


@contextlib.contextmanager
def start_router(log: Path, *servers: str) -> Iterator[str]:
    """PyPI's vllm-router in front of ``servers``: its address."""
    port = free_port()
    command = [Path(sys.executable).parent / "vllm-router", "--host", "127.0.0.1", "--port", str(port)]
    command += [
        "--worker-urls",
        *servers,
        "--policy",
        "consistent_hash",
        "--prometheus-port",
        str(free_port()),
    ]
    command += ["--health-check-endpoint", "/ready", "--health-check-interval-secs", "1"]
    # A request is tried five times, where its session is, until that server's circuit breaker opens: it has
    # to do so before they are used up, for the last ones to go elsewhere.
    command += ["--worker-startup-check-interval", "1", "--cb-failure-threshold", "3"]
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
        try:
            address = f"http://127.0.0.1:{port}"
            _wait_for(lambda: _status(f"{address}/readiness") == 200, log)
            yield address
        finally:
            process.terminate()
            process.wait(timeout=LIMIT_S)


def _status(url: str) -> int | None:
    try:
        return httpx.get(url, timeout=30).status_code
    except httpx.TransportError:
        return None


def _wait_for(is_so: Callable[[], bool], log: Path) -> None:
    end = time.monotonic() + LIMIT_S
    while not is_so():
        if time.monotonic() > end:
            pytest.fail(f"the router did not get ready:\n{log.read_text()[-4000:]}")
        time.sleep(0.1)


class Counts:
    """What a server has counted on ``/metrics`` since this was made."""

    def __init__(self, server: str) -> None:
        self._server = server
        self._before = metrics(server)

    def __call__(self, *names: str) -> list[float]:
        now = metrics(self._server)
        return [now.get(name, 0) - self._before.get(name, 0) for name in names]


async def until_all_are_there(server: str, num_requests: int) -> None:
    """Return when ``server`` has taken so many requests that it has not answered yet."""
    end = time.monotonic() + LIMIT_S
    while httpx.get(f"{server}/load", timeout=LIMIT_S).json()["server_load"] != num_requests:
        assert time.monotonic() < end
        await asyncio.sleep(0.05)


@dataclass
class Told:
    """What a client was told in answer to one request."""

    streams: bool
    answer: Answer = field(default_factory=Answer)
    error: Exception | None = None


class Client:
    """One request through the OpenAI SDK, in a task of its own, once it is started.

    To make one takes longer than many an answer: those that run together are made before.
    """

    def __init__(self, address: str, ask: dict[str, Any], session: str, *, streams: bool) -> None:
        self.told = Told(streams)
        #: Whether the client of a stream has seen its threads begin.
        self.sees_threads = False
        # Not in stream_options, of which the router drops what OpenAI's do not have.
        shown = {"extra_body": {"forkjoin": SHOWN}}
        self._ask = ask | shown | {"extra_headers": {"X-Session-ID": session}}
        self._openai = openai.AsyncOpenAI(
            base_url=f"{address}/v1", api_key="none", timeout=LIMIT_S, max_retries=0
        )
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def result(self) -> Told:
        """What it was told, when it is over. Fails where that does not come."""
        await asyncio.wait_for(self._task, LIMIT_S)
        return self.told

    @property
    def is_over(self) -> bool:
        return self._task.done()

    async def _run(self) -> None:
        async with self._openai:
            try:
                await (self._stream() if self.told.streams else self._whole())
            except Exception as error:  # what it is, the tests look at
                self.told.error = error

    async def _whole(self) -> None:
        self.told.answer = read_whole(await self._openai.chat.completions.create(**self._ask))

    async def _stream(self) -> None:
        chunks = []
        ask = self._ask | {"stream": True, "stream_options": {"include_usage": True}}
        try:
            async for chunk in await self._openai.chat.completions.create(**ask):
                chunks.append(chunk)
                self.sees_threads |= any(getattr(choice.delta, "threads", None) for choice in chunk.choices)
        finally:
            self.told.answer = read_stream(chunks)


@contextlib.contextmanager
def held_open(server: str) -> Iterator[None]:
    """A request in flight at ``server`` whose body never comes: a drain waits for it as long as this lasts."""
    host, _, port = server.removeprefix("http://").partition(":")
    head = f"POST /v1/completions HTTP/1.1\r\nhost: {host}\r\ncontent-length: 9\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=LIMIT_S) as connection:
        connection.sendall(head.encode())
        yield


#: Sub-agents that go on from one kept answer.
NUM_SUB_AGENTS = 8


@dataclass(frozen=True)
class SubAgents:
    """What requests were told that went on from a kept answer through a router."""

    #: Of the answer that they went on from: ``usage.forkjoin.kept``.
    kept: dict[str, Any]
    #: Of each, in the session of that answer: ``usage.forkjoin.continued``, and the prompt tokens that it did not prefill.
    of_session: list[str | None]
    cached_tokens_of_session: list[int]
    #: Of one in a session of the other server.
    of_other_session: str | None
    #: The status of the release, sent in the session of the answer.
    released: int


async def ask_sub_agents(router: str, *, home: str, other: str) -> SubAgents:
    """Keep an answer in session ``home``, go on from it there and in ``other``, and release it.

    By completions: the embedded model's chat template shows it the last user message, and no history.
    """
    context = "a=482*731, b=9047*36, " * 20
    async with httpx.AsyncClient(base_url=router, timeout=LIMIT_S) as http:

        async def answer(session: str, prompt: str, forkjoin: dict[str, Any]) -> dict[str, Any]:
            body = {"model": "abacus", "prompt": prompt, "max_tokens": 8, "forkjoin": forkjoin}
            got = await http.post("/v1/completions", json=body, headers={"X-Session-ID": session})
            return got.raise_for_status().json()

        kept = await answer(home, context, {"keep": 600, "enabled": False})

        def go_on(session: str, number: int):
            prompt = f"{context}{kept['choices'][0]['text']}c={number}*8"
            return answer(session, prompt, {"continues": kept["id"], "enabled": False})

        agents = await asyncio.gather(*(go_on(home, number) for number in range(2, 2 + NUM_SUB_AGENTS)))
        stranger = await go_on(other, 2)
        path = f"/v1/forkjoin/kept/{kept['id']}/release"
        released = await http.post(path, headers={"X-Session-ID": home})
    return SubAgents(
        kept["usage"]["forkjoin"]["kept"],
        [_continued(agent) for agent in agents],
        [agent["usage"]["prompt_tokens_details"]["cached_tokens"] for agent in agents],
        _continued(stranger),
        released.status_code,
    )


def _continued(answer: dict[str, Any]) -> str | None:
    return (answer["usage"].get("forkjoin") or {}).get("continued")
