"""A real Prometheus scrapes a real server, and every query that we ship finds what it asks for."""

from __future__ import annotations

import time
from collections.abc import Iterator

import httpx
import pytest

from forkjoin.terminal.drawing import LIGHT
from tests.deploy import promql
from tests.deploy.live import ASKED, POD, body, prometheus, result, wait_for
from tests.deploy.panels import draw_row, lines, rows
from tests.deploy.test_monitoring import queries
from tests.server.conftest import start_server

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def measured(tools, tmp_path_factory) -> Iterator[httpx.Client]:
    """A Prometheus that has seen a server fork, join, vote, meet a limit and queue."""
    folder = tmp_path_factory.mktemp("live")
    with (
        start_server(folder / "log", "--max-num-seqs", "2") as (address, _),
        prometheus(tools, folder, address) as client,
    ):
        wait_for(client, "forkjoin:votes_total == 0")
        # Of vLLM's own, a counter's first value is no increase: ask twice, with a scrape between.
        for round_ in (1, 2):
            for options in ASKED:
                answer = httpx.post(f"{address}/v1/chat/completions", json=body(options), timeout=300)
                assert answer.status_code == 200, answer.text
            wait_for(client, f"sum(forkjoin:votes_total) == {round_}")
        yield client


def test_every_query_of_dashboard_and_autoscalers_finds_something(measured, rendered):
    shipped = queries(rendered)
    asked = [q for where in ("dashboard", "keda", "adapter") for q in shipped[where]]
    assert [q for q in asked if not result(measured, q)] == []


def test_every_metric_of_the_rules_is_there_with_the_labels_that_they_use(measured, rendered):
    for query in [q for group in queries(rendered).values() for q in group]:
        for metric in promql.metrics(query):
            series = result(measured, metric)
            assert series, f"{metric} of {query}"
    labels = {"reason", "kind", "policy", "outcome", "status", "where", "source", "state", "le", "instance"}
    labels |= {"model_name"}
    used = {label for group in queries(rendered).values() for q in group for label in promql.labels(q)}
    assert used <= labels | POD.keys()


def test_no_alert_fires_but_for_the_limits_that_were_met(measured, rendered):
    fires = [q for q in queries(rendered)["rules"] if result(measured, q)]
    assert ["forkjoin:malformed_outputs_total" in q for q in fires] == [True]


def test_a_query_for_what_is_not_there_finds_nothing(measured):
    assert result(measured, 'max(vllm:gpu_cache_usage_perc{namespace="llm"})') == []


def test_each_panel_of_the_dashboard_can_be_drawn(measured, tmp_path):
    end = time.time()
    for row in rows():
        found = {panel.title: lines(measured, panel, end - 60, end) for panel in row.panels}
        # nothing was drafted, and so none is right
        assert [title for title, drawn in found.items() if not drawn] in ([], ["Drafts that were right"])
        draw_row(
            row,
            {title: drawn or [("none", [], [])] for title, drawn in found.items()},
            row.picture(tmp_path),
            LIGHT,
        )
        picture = row.picture(tmp_path).read_text()
        assert all(
            panel.title.replace("'", "&#x27;") in picture or panel.title in picture for panel in row.panels
        )
