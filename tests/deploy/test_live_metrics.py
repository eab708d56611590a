"""A real Prometheus scrapes a real server, and every query that we ship finds what it asks for."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from tests.deploy import promql
from tests.deploy.test_monitoring import queries
from tests.server.conftest import start_server

pytestmark = pytest.mark.server

#: What a pod monitor adds to each series.
POD = {"namespace": "llm", "pod": "forkjoin-vllm-forkjoin-5d4f8c7b9d-x2v4q"}
PROBLEM = "a=48*73, b=90*36, c=91*84"
#: A fork, a limit that is met, a vote.
ASKED = [{}, {"max_threads_per_fork": 2}, {"best_of": 3, "vote": "total ends in ([0-9])"}]


@contextlib.contextmanager
def prometheus(tools: Path, folder: Path, target: str) -> Iterator[httpx.Client]:
    """One that scrapes ``target`` every second."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    static = [{"targets": [target.removeprefix("http://")], "labels": POD}]
    config = {"scrape_configs": [{"job_name": "pods", "scrape_interval": "1s", "static_configs": static}]}
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    command = [
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
            process.wait(timeout=30)


def _result(client: httpx.Client, query: str) -> list[dict]:
    answer = client.get("/query", params={"query": query})
    assert answer.status_code == 200, (query, answer.text)
    return answer.json()["data"]["result"]


def _await(client: httpx.Client, query: str) -> None:
    end = time.monotonic() + 90
    while time.monotonic() < end:
        with contextlib.suppress(httpx.TransportError):
            # 503 while it starts
            if client.get("/query", params={"query": query}).status_code == 200 and _result(client, query):
                return
        time.sleep(0.5)
    pytest.fail(f"Prometheus found nothing for {query}")


@pytest.fixture(scope="module")
def measured(tools, tmp_path_factory) -> Iterator[httpx.Client]:
    """A Prometheus that has seen a server fork, join, vote, meet a limit and queue."""
    folder = tmp_path_factory.mktemp("live")
    with (
        start_server(folder / "log", "--max-num-seqs", "2") as (address, _),
        prometheus(tools, folder, address) as client,
    ):
        _await(client, "forkjoin:votes_total == 0")
        # Of vLLM's own, a counter's first value is no increase: ask twice, with a scrape between.
        for round_ in (1, 2):
            for options in ASKED:
                body = {"model": "abacus", "temperature": 0, "forkjoin": options}
                body["messages"] = [{"role": "user", "content": PROBLEM}]
                answer = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=300)
                assert answer.status_code == 200, answer.text
            _await(client, f"sum(forkjoin:votes_total) == {round_}")
        yield client


def test_every_query_of_dashboard_and_autoscalers_finds_something(measured, rendered):
    shipped = queries(rendered)
    asked = [q for where in ("dashboard", "keda", "adapter") for q in shipped[where]]
    assert [q for q in asked if not _result(measured, q)] == []


def test_every_metric_of_the_rules_is_there_with_the_labels_that_they_use(measured, rendered):
    for query in [q for group in queries(rendered).values() for q in group]:
        for metric in promql.metrics(query):
            series = _result(measured, metric)
            assert series, f"{metric} of {query}"
    labels = {"reason", "kind", "policy", "outcome", "status", "where", "source", "le", "instance"}
    labels |= {"model_name"}
    used = {label for group in queries(rendered).values() for q in group for label in promql.labels(q)}
    assert used <= labels | POD.keys()


def test_no_alert_fires_but_for_the_limits_that_were_met(measured, rendered):
    fires = [q for q in queries(rendered)["rules"] if _result(measured, q)]
    assert ["forkjoin:malformed_outputs_total" in q for q in fires] == [True]


def test_a_query_for_what_is_not_there_finds_nothing(measured):
    assert _result(measured, 'max(vllm:gpu_cache_usage_perc{namespace="llm"})') == []
