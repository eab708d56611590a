"""What a server tells of the requests that it served: traces and logs, from one server for all."""

from __future__ import annotations

import json
import time
from pathlib import Path

import httpx
import pytest

from tests.server.conftest import start_server
from tests.server.otlp import attributes, collector
from tests.server.reading import assert_the_page_is_right

pytestmark = pytest.mark.server

TRACE_ID, CALLER_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TITLES = ["a=482*731", "c=9047*36"]
#: What is logged of a request last.
LAST = "family_ended"


@pytest.fixture(scope="module")
def observed(tmp_path_factory):
    """(address, collector, log file) of a server that exports its traces and logs JSON.

    Every line that it writes, from the first to the last, is an object.
    """
    log = tmp_path_factory.mktemp("observed") / "log"
    with pytest.MonkeyPatch.context() as patch, collector() as (endpoint, traces):
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        flags = ["--otlp-traces-endpoint", endpoint, "--log-format", "json", "--enable-log-requests"]
        with start_server(log, *flags) as (address, _):
            yield address, traces, log
    assert any("drained" in entry["message"] for entry in _entries(log)), "the last line of a server"


@pytest.fixture(scope="module", autouse=True)
def exposed_first(observed):
    """What the server exposed before anything was asked."""
    return httpx.get(f"{observed[0]}/metrics", timeout=60).text


def _entries(log: Path) -> list[dict]:
    """The lines that are whole; each has what every line must have."""
    entries = [json.loads(line) for line in log.read_text().split("\n")[:-1]]
    assert all(e.keys() >= {"time", "level", "logger", "message", "process"} for e in entries)
    return entries


def _ask(address: str, *, headers: dict[str, str] | None = None, **more) -> httpx.Response:
    problems = "a=482*731, b=7*8, c=9047*36"
    body = {"model": "abacus", "temperature": 0, "messages": [{"role": "user", "content": problems}]}
    return httpx.post(
        f"{address}/v1/chat/completions", json=body | more, headers=headers, timeout=300
    ).raise_for_status()


# ---- traces --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def answer(observed):
    """A request that forked, sent with the trace context of its caller."""
    headers = {"traceparent": f"00-{TRACE_ID}-{CALLER_ID}-01", "x-request-id": "mine"}
    return _ask(observed[0], headers=headers, forkjoin={"include_threads": True}).json()


@pytest.fixture(scope="module")
def request_span(observed, answer):
    return _request_span(observed[1], answer)


def _request_span(traces, answer):
    def is_its(span):
        return span.name == "llm_request" and attributes(span)["gen_ai.request.id"] == answer["id"]

    return traces.wait_for(is_its)


@pytest.fixture(scope="module")
def thread_spans(observed, answer, request_span):
    traces = observed[1]
    for title in TITLES:
        traces.wait_for(lambda s, t=title: attributes(s).get("forkjoin.thread.title") == t)
    return sorted(traces.children(request_span), key=lambda s: attributes(s)["forkjoin.thread.index"])


def test_the_span_of_a_request_belongs_to_the_trace_of_its_caller(request_span):
    assert request_span.trace_id.hex() == TRACE_ID
    assert request_span.parent_span_id.hex() == CALLER_ID


def test_each_thread_has_one_span_a_child_of_its_requests(answer, request_span, thread_spans):
    assert [s.name for s in thread_spans] == ["llm_thread", "llm_thread"]
    assert {s.trace_id for s in thread_spans} == {request_span.trace_id}
    for span, thread in zip(thread_spans, answer["choices"][0]["message"]["threads"], strict=True):
        assert attributes(span) == {
            "gen_ai.request.id": answer["id"],
            "forkjoin.thread.id": thread["id"],
            "forkjoin.thread.index": thread["index"],
            "forkjoin.thread.title": thread["title"],
            "forkjoin.thread.parent": -1,
            "forkjoin.thread.num_tokens": thread["usage"]["completion_tokens"],
            "forkjoin.thread.end_reason": "stop",
        }


def test_threads_begin_at_the_fork_and_end_before_the_join(request_span, thread_spans):
    fork, join = request_span.events
    assert (fork.name, join.name) == ("forkjoin.fork", "forkjoin.join")
    assert {s.start_time_unix_nano for s in thread_spans} == {fork.time_unix_nano}
    ends = [s.end_time_unix_nano for s in thread_spans]
    assert request_span.start_time_unix_nano < fork.time_unix_nano < min(ends)
    assert max(ends) <= join.time_unix_nano < request_span.end_time_unix_nano


def test_the_request_says_how_it_forked_and_joined(answer, request_span):
    fork, join = map(attributes, request_span.events)
    assert fork["forkjoin.fork.width"] == 2
    assert 0 < fork["forkjoin.fork.shared_tokens"] <= answer["usage"]["prompt_tokens"] + 60
    assert join["forkjoin.join.prefilled_tokens"] > 0
    counts = answer["usage"]["forkjoin"]
    assert {name: attributes(request_span)[f"forkjoin.{name}"] for name in counts} == counts


def test_each_choice_has_a_span_with_threads_of_its_own(observed):
    address, traces, _ = observed
    before = len(traces.spans)
    _ask(address, n=2, seed=1, temperature=0.01)

    def named(name):
        return [s for s in traces.spans[before:] if s.name == name]

    # they may come in several parts
    traces.wait_for(lambda _: (len(named("llm_request")), len(named("llm_thread"))) == (2, 4))
    requests = named("llm_request")
    assert [len(traces.children(s)) for s in requests] == [2, 2]


def test_a_request_that_a_stop_string_ends_in_a_thread_has_all_its_spans(observed, answer):
    address, traces, _ = observed
    content = answer["choices"][0]["message"]["threads"][0]["content"]
    stop = content[len(content) // 2 :][:20]
    assert stop not in answer["choices"][0]["message"]["content"].partition("</Outlines>")[0]
    stopped = _ask(address, stop=[stop]).json()
    assert stopped["choices"][0]["finish_reason"] == "stop"
    span = _request_span(traces, stopped)
    traces.wait_for(lambda _: len(traces.children(span)) == 2)
    assert {attributes(s)["forkjoin.thread.end_reason"] for s in traces.children(span)} == {"cancelled"}
    assert all(s.end_time_unix_nano <= span.end_time_unix_nano for s in traces.children(span))


# ---- logs ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def entries(observed, answer):
    """What was logged until a request had been answered: a process of its own writes it into the file."""
    end = time.monotonic() + 60
    while True:
        logged = _entries(observed[2])
        if time.monotonic() > end or LAST in [e.get("event") for e in _of(logged, answer)]:
            return logged
        time.sleep(0.05)


def _of(entries: list[dict], answer: dict) -> list[dict]:
    return [e for e in entries if answer["id"].endswith(e.get("request_key", "none"))]


def test_all_processes_and_the_http_server_log_objects(entries):
    logged_by = {e["process"] for e in entries}
    assert {"APIServer", "EngineCore", "Worker"} <= logged_by
    loggers = {e["logger"] for e in entries}
    assert {"uvicorn.access", "uvicorn.error", "vllm.v1.engine.core", "vllm.forkjoin.server"} <= loggers


def test_the_lines_of_a_request_have_its_id(entries, answer):
    mine = _of(entries, answer)
    assert {e["request_id"].removeprefix("chatcmpl-")[:5] for e in mine} == {"mine-"}
    assert {"uvicorn.access", "vllm.forkjoin.events"} <= {e["logger"] for e in mine}
    assert any(e["message"].startswith("Received request") for e in mine)


def test_what_its_threads_did_is_logged_with_their_ids(entries, answer):
    told = [e for e in _of(entries, answer) if e["logger"] == "vllm.forkjoin.events"]
    assert {e["request_id"] for e in told} == {answer["id"]}
    assert [e["event"] for e in told] == ["forked", *["thread_ended"] * 2, "joined", LAST]
    threads = answer["choices"][0]["message"]["threads"]
    ended = {e["thread"]: e["num_tokens"] for e in told if e["event"] == "thread_ended"}
    assert ended == {t["index"]: t["usage"]["completion_tokens"] for t in threads}


def test_how_to_ask_is_logged(entries):
    (said,) = (e["message"] for e in entries if e["logger"] == "vllm.forkjoin.server")
    assert said.startswith("vllm-forkjoin serves abacus at http://127.0.0.1:")


# ---- metrics -------------------------------------------------------------------------------


def test_from_the_start_the_server_exposes_every_series_that_it_exposes_later(
    exposed_first, observed, answer
):
    first = assert_the_page_is_right(exposed_first)
    later = assert_the_page_is_right(httpx.get(f"{observed[0]}/metrics", timeout=60).text)
    ours = [name for name in later if name.startswith("forkjoin:")]
    for name in ours:
        series = [[{**s.labels, "": s.name} for s in there[name].samples] for there in (first, later)]
        assert series[0] == series[1], name
        assert name.endswith("_created") or {s.value for s in first[name].samples} == {0}, name
    of_model = {s.labels["model_name"] for name in ours for s in later[name].samples}
    assert of_model == {s.labels["model_name"] for s in later["vllm:num_requests_running"].samples}
    assert all(s.value > 0 for s in later["forkjoin:joins"].samples)
