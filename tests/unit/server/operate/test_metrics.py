from __future__ import annotations

import re
from typing import get_args

import pytest
from prometheus_client import REGISTRY

from forkjoin_scheduler.dialects.files import builtin_names, load
from forkjoin_scheduler.errors import EnginePlace, Limit, OwnPolicy
from forkjoin_scheduler.families.thread_end import ThreadEnd
from forkjoin_scheduler.joins.joined import end_policy
from forkjoin_scheduler.publish.events import (
    Admission,
    Continued,
    Drafted,
    Forked,
    Grouped,
    InternalError,
    JoinedAhead,
    Kept,
    Leased,
    Load,
    NewThread,
    Refused,
    ThreadEnded,
    ThreadsStarted,
    Voted,
)
from forkjoin_server.operate.label_values import malformed
from forkjoin_server.operate.metrics import SERVER, ServerMetrics
from scripts.metrics_page import PAGE, ours, page

OF_ENGINE = {"model_name": "", "engine": "1"}
THREAD = NewThread(index=0, number="1", title="")
KEPT = Kept(num_tokens=32, seconds=60, refusal=None)
NOT_KEPT = Kept(num_tokens=0, seconds=60, refusal="budget")
LEASED = Leased(num_leases=1, num_blocks=8, ends=["expired", "expired"])
DRAFTED = Drafted(source="family", num=9, num_right=4)


@pytest.mark.parametrize(
    ("event", "name", "labels", "grows_by"),
    [
        (Grouped(rows=8, saved_tokens=7), "forkjoin:grouped_rows_total", {}, 8),
        (Grouped(rows=8, saved_tokens=7), "forkjoin:grouped_kv_tokens_saved_total", {}, 7),
        (JoinedAhead(prefilled_tokens=7), "forkjoin:join_ahead_tokens_total", {}, 7),
        (Voted(index=0, result="4"), "forkjoin:votes_total", {"outcome": "decided"}, 1),
        (InternalError(where="x"), "forkjoin:internal_errors_total", {"where": "x"}, 1),
        (Voted(index=0, result=None), "forkjoin:votes_total", {"outcome": "undecided"}, 1),
        (KEPT, "forkjoin:answers_kept_total", {"outcome": "kept"}, 1),
        (NOT_KEPT, "forkjoin:answers_kept_total", {"outcome": "budget"}, 1),
        (Continued(state="pressure"), "forkjoin:answers_continued_total", {"state": "pressure"}, 1),
        (LEASED, "forkjoin:leases_ended_total", {"reason": "expired"}, 2),
        (DRAFTED, "forkjoin:draft_tokens_total", {"source": "family"}, 9),
        (DRAFTED, "forkjoin:draft_tokens_accepted_total", {"source": "family"}, 4),
    ],
)
def test_an_event_counts_in_its_metric(event, name, labels, grows_by):
    labels = OF_ENGINE | labels
    before = REGISTRY.get_sample_value(name, labels) or 0
    SERVER.observe(event, 1)
    assert REGISTRY.get_sample_value(name, labels) == before + grows_by


def test_what_is_kept_at_the_moment_is_a_gauge():
    SERVER.observe(LEASED, 1)
    SERVER.observe(Leased(num_leases=2, num_blocks=3, ends=[]), 1)
    assert REGISTRY.get_sample_value("forkjoin:leases", OF_ENGINE) == 2
    assert REGISTRY.get_sample_value("forkjoin:leased_kv_blocks", OF_ENGINE) == 3


def test_threads_of_a_later_wave_are_started_when_they_start():
    names = ["threads_started_total", "threads_running", "prefix_tokens_shared_total"]

    def values() -> list[float]:
        return [REGISTRY.get_sample_value(f"forkjoin:{name}", OF_ENGINE) or 0 for name in names]

    def grown(event: dict) -> list[float]:
        before = values()
        SERVER.observe(event, 1)
        return [now - was for now, was in zip(values(), before, strict=True)]

    forked = Forked(parent_index=-1, threads=[THREAD] * 5, num_later=3, shared_tokens=7, num_duplicates=0)
    assert grown(forked) == [2, 5, 14]
    assert grown(ThreadsStarted(parent_index=-1, threads=[2], shared_tokens=7)) == [1, 0, 7]
    assert grown(ThreadEnded(index=0, reason=ThreadEnd.NOT_STARTED, num_tokens=0)) == [0, -1, 0]


def test_how_many_wait_is_told_by_engine():
    SERVER.observe(Load(threads=5, requests=2, expected_tokens=0, expected_threads=0), 3)
    SERVER.observe(Load(threads=0, requests=1, expected_tokens=0, expected_threads=0), 4)
    names = ["forkjoin:threads_waiting", "forkjoin:requests_waiting"]
    waiting = [
        [REGISTRY.get_sample_value(name, OF_ENGINE | {"engine": engine}) for name in names] for engine in "34"
    ]
    assert waiting == [[5, 2], [0, 1]]


def test_what_admission_expected_is_compared_once_a_request():
    names = [f"forkjoin:admission_peak_ratio_{what}" for what in ("count", "sum")]
    before = [REGISTRY.get_sample_value(name, OF_ENGINE) or 0 for name in names]
    SERVER.observe(Admission(peak_ratios=[0.5, 1.25]), 1)
    assert [REGISTRY.get_sample_value(n, OF_ENGINE) - b for n, b in zip(names, before, strict=True)] == [
        2,
        1.75,
    ]


def _samples():
    return {
        (s.name, *s.labels.items()): s.value
        for family in REGISTRY.collect()
        for s in family.samples
        if s.name.startswith("forkjoin:")
    }


def _of_model(name):
    """The series of one model: the metrics are the process's, so each test has a model of its own."""
    return {labels: v for labels, v in _samples().items() if ("model_name", name) in labels}


def test_all_series_of_each_engine_exist_from_the_start_at_zero():
    ServerMetrics().start("zero", [0, 1], load("threadweaver"))
    there = {labels: v for labels, v in _of_model("zero").items() if not labels[0].endswith("_created")}
    assert set(there.values()) == {0}
    names = {re.sub(r"_(total|bucket|sum|count)$", "", name) for name, *_ in there}
    assert names == {re.sub(r"_total$", "", row.name) for row in ours()}
    of = [{k: v for k, v in labels if k != "engine"} for (_, *labels) in there if ("engine", "0") in labels]
    assert of == [
        {k: v for k, v in labels if k != "engine"} for (_, *labels) in there if ("engine", "1") in labels
    ]


@pytest.mark.parametrize("dialect", builtin_names())
def test_no_event_of_an_engine_makes_a_series(dialect):
    server = ServerMetrics()
    server.start(dialect, [0], load(dialect))
    before = _of_model(dialect).keys()
    for end in ThreadEnd:
        policy = end_policy(load(dialect), end)
        server.observe(ThreadEnded(index=0, reason=end, num_tokens=0, policy=policy), 0)
    for kind, policy in load(dialect).policies:
        server.observe(Refused(reason=kind, policy=policy.value, parent_index=-1), 0)
    for place in (*get_args(EnginePlace), *get_args(OwnPolicy)):
        server.observe(InternalError(where=place), 0)
    server.observe(InternalError(where="feed"), None)
    server.observe(Voted(index=0, result=None), 0)
    server.observe(DRAFTED, 0)
    for limit in get_args(Limit):
        server.refuse(limit)
    assert _of_model(dialect).keys() == before


def test_a_fork_refused_to_a_request_of_npr_ends_it_where_a_step_is_closed():
    found = {policy for kind, policy in malformed(load("npr")) if kind == "no_outline"}
    assert found == {"close_thread", "end_request", "sequential"}


def test_only_a_dialect_with_swaps_counts_stray_tags():
    having = {name for name in builtin_names() if ("stray_tag", "swap") in malformed(load(name))}
    assert having == {name for name in builtin_names() if load(name).swaps}
    assert 0 < len(having) < len(builtin_names())


def test_where_nothing_forks_only_refusals_are_counted():
    ServerMetrics().start("none", [0], None)
    assert {name for name, *_ in _of_model("none") if not name.endswith("_created")} == {
        "forkjoin:requests_refused_total"
    }


def test_the_page_of_metrics_is_that_of_their_definitions():
    assert PAGE.read_text() == page(), "stale: run `make metrics-page`"
