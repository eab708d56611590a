from __future__ import annotations

import pytest
from prometheus_client import REGISTRY

from forkjoin_server.metrics import observe
from scripts.metrics_page import PAGE, page

DRAFTED = {"type": "drafted", "source": "family", "num": 9, "num_right": 4}


@pytest.mark.parametrize(
    ("event", "name", "labels", "grows_by"),
    [
        ({"type": "joined_ahead", "prefilled_tokens": 7}, "forkjoin:join_ahead_tokens_total", {}, 7),
        ({"type": "voted", "result": "4"}, "forkjoin:votes_total", {"outcome": "decided"}, 1),
        ({"type": "internal_error", "where": "x"}, "forkjoin:internal_errors_total", {"where": "x"}, 1),
        ({"type": "voted", "result": None}, "forkjoin:votes_total", {"outcome": "undecided"}, 1),
        (DRAFTED, "forkjoin:draft_tokens_total", {"source": "family"}, 9),
        (DRAFTED, "forkjoin:draft_tokens_accepted_total", {"source": "family"}, 4),
    ],
)
def test_an_event_counts_in_its_metric(event, name, labels, grows_by):
    before = REGISTRY.get_sample_value(name, labels) or 0
    observe(event)
    assert REGISTRY.get_sample_value(name, labels) == before + grows_by


def test_threads_of_a_later_wave_are_started_when_they_start():
    names = ["threads_started_total", "threads_running", "prefix_tokens_shared_total"]

    def values() -> list[float]:
        return [REGISTRY.get_sample_value(f"forkjoin:{name}") or 0 for name in names]

    def grown(event: dict) -> list[float]:
        before = values()
        observe(event)
        return [now - was for now, was in zip(values(), before, strict=True)]

    forked = {"type": "forked", "threads": [{}] * 5, "num_later": 3, "shared_tokens": 7, "num_duplicates": 0}
    assert grown(forked) == [2, 5, 14]
    assert grown({"type": "threads_started", "threads": [2], "shared_tokens": 7}) == [1, 0, 7]
    assert grown({"type": "thread_ended", "reason": "not_started", "num_tokens": 0}) == [0, -1, 0]


def test_how_many_wait_is_told_by_engine():
    observe({"type": "load", "engine": 3, "threads": 5, "requests": 2})
    observe({"type": "load", "engine": 4, "threads": 0, "requests": 1})
    names = ["forkjoin:threads_waiting", "forkjoin:requests_waiting"]
    assert [[REGISTRY.get_sample_value(n, {"engine": e}) for n in names] for e in "34"] == [[5, 2], [0, 1]]


def test_what_admission_expected_is_compared_once_a_request():
    names = [f"forkjoin:admission_peak_ratio_{what}" for what in ("count", "sum")]
    before = [REGISTRY.get_sample_value(name) for name in names]
    observe({"type": "admission", "peak_ratios": [0.5, 1.25]})
    assert [REGISTRY.get_sample_value(n) - b for n, b in zip(names, before, strict=True)] == [2, 1.75]


def test_an_event_of_a_later_version_is_not_counted():
    before = _samples()
    observe({"type": "of_a_later_version"})
    assert _samples() == before
    observe({"type": "joined", "prefilled_tokens": 3})
    assert _samples() != before


def _samples():
    return {
        (s.name, *s.labels.items()): s.value
        for family in REGISTRY.collect()
        for s in family.samples
        if s.name.startswith("forkjoin:")
    }


def test_the_page_of_metrics_is_that_of_their_definitions():
    assert PAGE.read_text() == page(), "stale: run `make metrics-page`"
