"""Two replicas of the real server under the real Ray Serve, one of which is killed while all of them stream."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from forkjoin_bench.ports import free_port
from tests.deploy.manifests import DEPLOY
from tests.installing import programs

pytestmark = [pytest.mark.server, pytest.mark.timeout(1800)]

FORKJOIN = [str(Path(sys.executable).parent / "forkjoin"), "serve"]
ARGV = ["--max-model-len", "4096", "--block-size", "32", "--enforce-eager"]
NUM_REPLICAS = 2
NUM_STREAMS = 8
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "PYTHONPATH": str(DEPLOY / "kuberay"),
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    # On a busy machine a proxy needs longer than 5 s to start; Serve would start another, for ever.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "300",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "300",
}
BODY = {
    "model": "abacus",
    "temperature": 0,
    "stream": True,
    "stream_options": {"include_threads": True},
    "messages": [{"role": "user", "content": "a=482*731, b=6428*519, c=9047*36, d=613*274"}],
}


@pytest.fixture(scope="module")
def ray() -> Path:
    """The programs of an environment with Ray, without vLLM."""
    return programs("install-ray")


@pytest.fixture
def serve(ray: Path, tmp_path: Path) -> Iterator[str]:
    """The address of Ray Serve with our application, all of whose replicas are ready."""
    gcs, http = free_port(), free_port()
    application = {
        "name": "forkjoin",
        "import_path": "forkjoin_app:app",
        "route_prefix": "/",
        "args": {"argv": ARGV, "command": FORKJOIN},
        "deployments": [
            {"name": "ForkJoin", "num_replicas": NUM_REPLICAS, "ray_actor_options": {"num_cpus": 1}}
        ],
    }
    config = {"http_options": {"host": "127.0.0.1", "port": http}, "applications": [application]}
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(config))
    head = [ray / "ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={gcs}"]
    head += [f"--num-cpus={NUM_REPLICAS}", "--object-store-memory=100000000", "--include-dashboard=false"]
    run = [ray / "serve", "run", f"--address=127.0.0.1:{gcs}", tmp_path / "serve.yaml"]
    address = f"http://127.0.0.1:{http}"
    # Sockets lie in it, whose paths must be short.
    with (
        tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder,
        _head([*head, f"--temp-dir={folder}"], tmp_path / "head"),
        _started(run, tmp_path / "serve") as program,
    ):
        _await(lambda: len(_servers()) == NUM_REPLICAS and _is_ready(address), program)
        yield address


@dataclass
class Program:
    """A running program, and what it prints."""

    process: psutil.Popen
    log: Path

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None


@contextlib.contextmanager
def _head(command: list[Any], log: Path) -> Iterator[None]:
    """Ray's head node. It gives its own processes 30 s to start, which a busy machine may not; then once more."""
    with contextlib.ExitStack() as stack:
        for _ in range(5):
            if has_begun := _begins(stack.enter_context(_started(command, log))):
                break
        assert has_begun, log.read_text()[-4000:]
        yield


def _begins(head: Program) -> bool:
    """Wait until a head node has begun, or ended instead."""
    _await(lambda: "Ray runtime started" in head.log.read_text() or not head.is_running)
    return head.is_running


@contextlib.contextmanager
def _started(command: list[Any], log: Path) -> Iterator[Program]:
    """Run ``command``; in the end nothing of what it started is left."""
    with log.open("w") as out:
        process = psutil.Popen(list(map(str, command)), env=os.environ | ENVIRONMENT, stdout=out, stderr=out)
    try:
        yield Program(process, log)
    finally:
        family = [process, *process.children(recursive=True)] if process.is_running() else []
        with contextlib.suppress(psutil.NoSuchProcess):  # it may have ended by itself
            process.terminate()
        _, alive = psutil.wait_procs(family, timeout=60)
        for rest in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                rest.kill()
        process.wait()


def _servers() -> list[psutil.Process]:
    """The server of each replica, wherever Ray put it below this process."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if FORKJOIN[0] in process.cmdline():
                found.append(process)
    return found


def _is_ready(address: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{address}/ready", timeout=30).status_code == 200
    return False


def _await(condition: Callable[[], bool], program: Program | None = None) -> None:
    """Wait until ``condition``. Raises AssertionError after 15 minutes, or when ``program`` has ended."""
    end = time.monotonic() + 900
    while not condition():
        said = "" if program is None else program.log.read_text()[-4000:]
        assert program is None or program.is_running, f"it has ended: {said}"
        assert time.monotonic() < end, said
        time.sleep(0.5)


async def _stream(client: httpx.AsyncClient, begun: asyncio.Event) -> list[dict[str, Any]]:
    """The events of one answer, but for the last, which says that there are no more."""
    events = []
    async with client.stream("POST", "/v1/chat/completions", json=BODY) as response:
        assert response.status_code == 200
        async for line in response.aiter_lines():
            data = line.removeprefix("data: ")
            if line.startswith("data: ") and data != "[DONE]":
                events.append(json.loads(data))
                begun.set()
    return events


def _text(events: list[dict[str, Any]]) -> str:
    return "".join(c["choices"][0]["delta"].get("content") or "" for c in events if c.get("choices"))


async def _kill_one_while_all_stream(
    address: str,
) -> tuple[list[dict[str, Any]], list[list[dict[str, Any]]], list[httpx.Response]]:
    """The events of an undisturbed answer, those of each disturbed one, and answers to who asks again."""
    async with httpx.AsyncClient(base_url=address, timeout=600) as client:
        calm = await _stream(client, asyncio.Event())
        begun = [asyncio.Event() for _ in range(NUM_STREAMS)]
        streams = [asyncio.create_task(_stream(client, event)) for event in begun]
        await asyncio.gather(*(event.wait() for event in begun))
        victim = _servers()[0]
        for process in [victim, *victim.children(recursive=True)]:
            process.kill()
        disturbed = await asyncio.gather(*streams)
        body = BODY | {"stream": False, "stream_options": None, "max_tokens": 4}
        again = [await client.post("/v1/chat/completions", json=body) for _ in range(NUM_STREAMS)]
    return calm, disturbed, again


def test_a_replica_that_is_killed_takes_no_request_of_another_with_it(serve):
    calm, disturbed, again = asyncio.run(_kill_one_while_all_stream(serve))
    threads = [t for c in calm if c.get("choices") for t in c["choices"][0]["delta"].get("threads") or []]
    assert {t["index"] for t in threads} >= {0, 1, 2, 3}

    cut = [events for events in disturbed if "error" in events[-1]]
    whole = [events for events in disturbed if "error" not in events[-1]]
    assert cut
    assert whole
    assert {_text(events) for events in whole} == {_text(calm)}
    assert all("ask again" in events[-1]["error"]["message"] for events in cut)

    assert {r.status_code for r in again} - {503} == {200}
    assert all(r.headers["retry-after"] == "1" for r in again if r.status_code == 503)
    _await(lambda: len(_servers()) == NUM_REPLICAS and _is_ready(serve))
