"""A real Prometheus that scrapes a real server."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import yaml

from forkjoin_bench.ports import free_port

#: What a pod monitor adds to each series.
POD = {"namespace": "llm", "pod": "forkjoin-vllm-forkjoin-5d4f8c7b9d-x2v4q"}
PROBLEM = "a=48*73, b=90*36, c=91*84"
#: A fork, a limit that is met, a vote.
ASKED: list[dict[str, Any]] = [
    {},
    {"max_threads_per_fork": 2},
    {"best_of": 3, "vote": "total ends in ([0-9])"},
]
WAIT_S = 240


def body(options: dict[str, Any]) -> dict[str, Any]:
    """A request with ``options`` of fork/join."""
    question = [{"role": "user", "content": PROBLEM}]
    return {"model": "abacus", "temperature": 0, "forkjoin": options, "messages": question}


@contextlib.contextmanager
def prometheus(tools: Path, folder: Path, target: str) -> Iterator[httpx.Client]:
    """One that scrapes ``target`` every second."""
    port = free_port()
    static = [{"targets": [target.removeprefix("http://")], "labels": POD}]
    config = {"scrape_configs": [{"job_name": "pods", "scrape_interval": "1s", "static_configs": static}]}
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    command: list[str | Path] = [
        tools / "prometheus",
        f"--config.file={folder}/prometheus.yaml",
        f"--storage.tsdb.path={folder}/data",
    ]
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen(
            [*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log
        )
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", timeout=30) as client:
                yield client
        finally:
            process.terminate()
            process.wait(timeout=WAIT_S)


def result(client: httpx.Client, query: str) -> list[dict[str, Any]]:
    """What ``query`` finds now."""
    answer = client.get("/query", params={"query": query})
    assert answer.status_code == 200, (query, answer.text)
    found: list[dict[str, Any]] = answer.json()["data"]["result"]
    return found


def wait_for(client: httpx.Client, query: str) -> None:
    """Return when ``query`` finds something. Raises TimeoutError if it does not."""
    end = time.monotonic() + WAIT_S
    while time.monotonic() < end:
        with contextlib.suppress(httpx.TransportError):
            # 503 while it starts
            if client.get("/query", params={"query": query}).status_code == 200 and result(client, query):
                return
        time.sleep(0.5)
    raise TimeoutError(f"Prometheus found nothing for {query} in {WAIT_S} s")
