"""What two API servers of one engine tell, over OTLP/HTTP and as JSON, of requests whose threads fork too."""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from forkjoin_bench.inputs.dialects import write_dialect
from forkjoin_bench.inputs.script import Compiler, write_script
from forkjoin_bench.inputs.traces import Family, Fork, Thread
from forkjoin_bench.vllm_seam.serving import REPLAY, SCRIPT_VARIABLE
from forkjoin_server.start.configuration import EMBEDDED_MODEL
from forkjoin_server.vllm_seam.tokenizers import tokenizer_of
from tests.server.conftest import start_server
from tests.server.otlp import attributes, http_collector
from tests.server.reading import assert_the_page_is_right

pytestmark = pytest.mark.server

ROOT = -1
INNERMOST = Fork((Thread("2.1.1", "e", ("eee",)), Thread("2.1.2", "f", ("ffffff",))))
INNER = Fork((Thread("2.1", "c", ("cc", INNERMOST, "c")), Thread("2.2", "d", ("dddd",))))
OUTER = Fork((Thread("1", "a", ("aaaaaaaaaaaaaaaa",)), Thread("2", "b", ("bb", INNER, "b"))))
NESTED = Family("nested", "<|user|>nest<|assistant|>", ("so: ", OUTER, "end"))
#: By title, in the order of starting: who forked each thread.
PARENTS = {"a": ROOT, "b": ROOT, "c": 1, "d": 1, "e": 2, "f": 2}
ASK = {"model": "abacus", "temperature": 0, "forkjoin": {"include_threads": True}}
NUM_ASKED, NUM_CLIENTS = 24, 8


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """(answers, collector, log entries, metrics): all that was told of requests to two API servers, both over.

    Half of the requests are written as ``NESTED`` is, half by the model.
    """
    folder = tmp_path_factory.mktemp("scaled")
    tokenizer, script = tokenizer_of(str(EMBEDDED_MODEL)), folder / "script"
    (eos_id,) = tokenizer.encode("<|end|>")
    write_script(script, [Compiler(tokenizer).compile(NESTED)], eos_id)
    flags = ["--api-server-count", "2", "--log-format", "json", "--enable-log-requests"]
    flags += ["--dialect", str(write_dialect(folder, "reprefill")), "--logits-processors", REPLAY]
    with http_collector() as (endpoint, traces):
        env = {SCRIPT_VARIABLE: str(script), "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"}
        # A step's outputs are taken one by one, as they are in slices where hundreds of requests run.
        env |= {"VLLM_V1_OUTPUT_PROC_CHUNK_SIZE": "1"}
        flags += ["--otlp-traces-endpoint", endpoint]
        with start_server(folder / "log", *flags, env=env) as (address, _), contextlib.ExitStack() as stack:
            clients = _clients(stack, address, folder / "log")
            contents = ["nest", "a=482*731, b=7*8, c=9047*36"] * (NUM_ASKED // 2)
            with ThreadPoolExecutor(NUM_ASKED) as pool:
                answers = list(pool.map(_ask, itertools.cycle(clients), contents))
            page = httpx.get(f"{address}/metrics", timeout=60).text
        # what it had not exported yet, it has at its end
        yield answers, traces, [json.loads(line) for line in (folder / "log").read_text().splitlines()], page


def _clients(stack: contextlib.ExitStack, address: str, log: Path) -> list[httpx.Client]:
    """Some with a connection each, among which are connections to both API servers."""
    clients, servers = [], set()
    while len(clients) < NUM_CLIENTS or len(servers) < 2:
        assert len(clients) < 64, "one API server takes all"
        client = stack.enter_context(
            httpx.Client(base_url=address, timeout=300, limits=httpx.Limits(max_connections=1))
        )
        host, port = client.get("/ready").extensions["network_stream"].get_extra_info("client_addr")
        servers.add(_server_of(f"{host}:{port}", log))
        clients.append(client)
    return clients


def _server_of(client: str, log: Path) -> int:
    """The process that says it has answered ``client``."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        for line in log.read_text().splitlines(keepends=True):
            if client in line and line.endswith("\n"):
                pid: int = json.loads(line)["pid"]
                return pid
        time.sleep(0.05)
    pytest.fail(f"no access of {client} was logged")


def _ask(client: httpx.Client, content: str) -> dict[str, Any]:
    body = ASK | {"messages": [{"role": "user", "content": content}]}
    return client.post("/v1/chat/completions", json=body).raise_for_status().json()


@pytest.fixture(scope="module", params=range(0, NUM_ASKED, 2))
def nested(request, told):
    """(answer, the span of its request, those of its threads by index) of one that nests."""
    answers, traces, *_ = told
    answer = answers[request.param]
    spans = [s for s in traces.spans if attributes(s).get("gen_ai.request.id") == answer["id"]]
    (root,) = (s for s in spans if s.name == "llm_request")
    threads = [s for s in spans if s.name == "llm_thread"]
    return answer, root, sorted(threads, key=lambda s: attributes(s)["forkjoin.thread.index"])


# ---- traces --------------------------------------------------------------------------------


def test_each_thread_has_one_span_a_child_of_whoever_forked_it(nested):
    answer, root, threads = nested
    told = [attributes(s) for s in threads]
    assert [a["forkjoin.thread.title"] for a in told] == list(PARENTS)
    assert [a["forkjoin.thread.parent"] for a in told] == list(PARENTS.values())
    parents = [root if i == ROOT else threads[i] for i in PARENTS.values()]
    assert [s.parent_span_id for s in threads] == [p.span_id for p in parents]
    assert {s.trace_id for s in threads} == {root.trace_id}
    shown = answer["choices"][0]["message"]["threads"]
    assert [a["forkjoin.thread.id"] for a in told] == [t["id"] for t in shown]
    ids = ["root" if p is root else attributes(p)["forkjoin.thread.id"] for p in parents]
    assert ids == [t["parent_id"] for t in shown]
    counts = [a["forkjoin.thread.num_tokens"] for a in told]
    assert counts == [t["usage"]["completion_tokens"] for t in shown]
    assert {a["forkjoin.thread.end_reason"] for a in told} == {"stop"}


def test_threads_lie_between_the_fork_and_the_join_of_whoever_forked_them(nested):
    _, root, threads = nested
    for index, span in [(ROOT, root), *enumerate(threads)]:
        own = [s for s, parent in zip(threads, PARENTS.values(), strict=True) if parent == index]
        times = {e.name: e.time_unix_nano for e in span.events}
        assert list(times) == (["forkjoin.fork", "forkjoin.join"] if own else [])
        assert len(span.events) == len(times)
        for child in own:
            assert span.start_time_unix_nano < times["forkjoin.fork"] == child.start_time_unix_nano
            assert child.start_time_unix_nano < child.end_time_unix_nano <= times["forkjoin.join"]
            assert times["forkjoin.join"] < span.end_time_unix_nano


# ---- logs ----------------------------------------------------------------------------------


def test_every_line_is_one_entry_of_a_known_process_or_printed(told):
    _, _, entries, _ = told
    for entry in entries:
        assert entry.keys() >= {"time", "level", "logger", "message", "process", "pid"}
    processes = {e["process"] for e in entries if e["logger"] != "printed"}
    assert processes >= {"MainProcess", "ApiServer_0", "ApiServer_1", "EngineCore", "Worker"}


def test_each_api_server_logs_what_the_requests_did_that_it_answered(told):
    answers, _, entries, _ = told
    answered_by = set()
    for i, answer in enumerate(answers):
        mine = [e for e in entries if answer["id"].endswith(e.get("request_key", "none"))]
        (pid,) = {e["pid"] for e in mine if e["process"].startswith("ApiServer")}
        answered_by.add(pid)
        assert "uvicorn.access" in {e["logger"] for e in mine}
        events = [e for e in mine if e["logger"] == "vllm.forkjoin.events"]
        assert {e["request_id"] for e in events} == {answer["id"]}
        parents = list(PARENTS.values()) if i % 2 == 0 else [ROOT, ROOT]
        for event in ("forked", "joined"):
            assert sorted(e.get("thread", ROOT) for e in events if e["event"] == event) == sorted({*parents})
        ended = [e["thread"] for e in events if e["event"] == "thread_ended"]
        assert sorted(ended) == list(range(len(parents)))
        (end,) = (e for e in events if e["event"] == "family_ended")
        counts = answer["usage"]["forkjoin"]
        assert {name: end[name] for name in counts} == counts
    assert len(answered_by) == 2


# ---- metrics -------------------------------------------------------------------------------


def test_the_metrics_are_those_of_both_api_servers_together(told):
    found = {
        name: sum(sample.value for sample in family.samples)
        for name, family in assert_the_page_is_right(told[3]).items()
    }
    num_each = NUM_ASKED // 2
    assert found["forkjoin:forks"] == found["forkjoin:joins"] == num_each * (3 + 1)
    assert found["forkjoin:threads_started"] == num_each * (len(PARENTS) + 2)
    assert found["forkjoin:threads_ended"] == found["forkjoin:threads_started"]
    assert found["forkjoin:threads_running"] == 0
