"""Two replicas of the real server under the real Ray Serve, one of which is killed while all stream."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

from tests.deploy.manifests import DEPLOY, ROOT
from tests.server.conftest import free_port

pytestmark = pytest.mark.server

FORKJOIN = [str(Path(sys.executable).parent / "forkjoin"), "serve"]
ARGV = ["--max-model-len", "4096", "--block-size", "32", "--enforce-eager"]
NUM_REPLICAS = 2
BODY = {
    "model": "abacus",
    "temperature": 0,
    "stream": True,
    "stream_options": {"include_threads": True},
    "forkjoin": {"include_threads": True},
    "messages": [{"role": "user", "content": "a=482*731, b=64*28, c=9047*36, d=613*274"}],
}


@pytest.fixture(scope="module")
def python() -> Path:
    """The Python of an environment with Ray, without vLLM."""
    done = subprocess.run([ROOT / "scripts/install-ray"], capture_output=True, text=True)
    if done.returncode:
        pytest.fail(f"scripts/install-ray:\n{done.stderr[-3000:]}")
    return Path(done.stdout.splitlines()[-1]) / "bin/python"


@pytest.fixture
def cluster(python: Path, tmp_path: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Ray Serve with our application, ready: its address and its process."""
    port, log = free_port(), tmp_path / "log"
    application = {
        "name": "forkjoin",
        "import_path": "forkjoin_app:app",
        "route_prefix": "/",
        "args": {"argv": ARGV, "command": FORKJOIN},
        "deployments": [
            {"name": "ForkJoin", "num_replicas": NUM_REPLICAS, "ray_actor_options": {"num_cpus": 1}}
        ],
    }
    config = {"http_options": {"host": "127.0.0.1", "port": port}, "applications": [application]}
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(config))
    environment = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DISABLE_MEMORY_MONITOR": "1",
        "PYTHONPATH": str(DEPLOY / "kuberay"),
    }
    with log.open("w") as out:
        process = subprocess.Popen(
            [python.parent / "serve", "run", tmp_path / "serve.yaml"],
            env=os.environ | environment,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
        try:
            address = f"http://127.0.0.1:{port}"
            _await(lambda: len(_servers(process)) == NUM_REPLICAS and _is_ready(address), log)
            yield address, psutil.Process(process.pid)
        finally:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=120)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _servers(cluster: psutil.Process | subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The servers of all replicas: a process each."""
    processes = psutil.Process(cluster.pid).children(recursive=True)
    found = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if FORKJOIN[0] in process.cmdline():
                found.append(process)
    return found


def _is_ready(address: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{address}/ready", timeout=5).status_code == 200
    return False


def _await(condition, log: Path, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, log.read_text()[-4000:]
        time.sleep(0.5)


async def _stream(client: httpx.AsyncClient, url: str, begun: asyncio.Event) -> list[str]:
    """The events of one answer."""
    events = []
    async with client.stream("POST", url, json=BODY) as response:
        assert response.status_code == 200
        async for line in response.aiter_lines():
            if line.startswith("data: "):
                events.append(line.removeprefix("data: "))
                begun.set()
    return events


def _text(events: list[str]) -> str:
    chunks = [json.loads(e) for e in events if e != "[DONE]"]
    return "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c.get("choices"))


def test_one_replica_of_two_is_killed_and_the_other_loses_nothing(cluster, tmp_path):
    address, ray = cluster
    url, log = f"{address}/v1/chat/completions", tmp_path / "log"

    async def drive() -> tuple[list[list[str]], list[httpx.Response]]:
        async with httpx.AsyncClient(timeout=300) as client:
            begun = [asyncio.Event() for _ in range(8)]
            streams = [asyncio.create_task(_stream(client, url, event)) for event in begun]
            await asyncio.gather(*(event.wait() for event in begun))
            victim = _servers(ray)[0]
            victim.kill()
            after = [await client.post(url, json=BODY | {"stream": False, "max_tokens": 4}) for _ in range(8)]
            return list(await asyncio.gather(*streams)), after

    whole = asyncio.run(_whole(url))
    told, after = asyncio.run(drive())
    ended = [events for events in told if events[-1] == "[DONE]" and "error" not in json.loads(events[-2])]
    cut = [events for events in told if events not in ended]
    assert cut
    assert ended
    assert {_text(events) for events in ended} == {whole}
    for events in cut:
        error = next(json.loads(e) for e in reversed(events) if e != "[DONE]")["error"]
        assert "ask again" in error["message"]
    assert {r.status_code for r in after} <= {200, 503}
    assert 200 in {r.status_code for r in after}
    assert all(r.headers["retry-after"] == "1" for r in after if r.status_code == 503)
    _await(lambda: len(_servers(ray)) == NUM_REPLICAS and _is_ready(address), log)


async def _whole(url: str) -> str:
    async with httpx.AsyncClient(timeout=300) as client:
        events = await _stream(client, url, asyncio.Event())
    threads = [t for e in events if e != "[DONE]" for t in _threads(json.loads(e))]
    assert {t["index"] for t in threads} >= {0, 1, 2}
    return _text(events)


def _threads(chunk: dict) -> list[dict]:
    return [t for choice in chunk.get("choices", []) for t in choice["delta"].get("threads") or []]
