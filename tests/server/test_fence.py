"""A request that fails in the engine is a 500 to its client, and nothing to the others."""

from __future__ import annotations

import re

import httpx
import pytest

from tests.importing import ROOT, importable
from tests.server.conftest import start_server
from tests.server.faulty_in_engine import FAULTY
from tests.server.reading import wait_until_idle

pytestmark = pytest.mark.server

FAILS = f"a=482*731, b={FAULTY}, c=91*37"
GOOD = "a=482*731, b=6*7, c=91*37"


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    """The address of a server in whose engine some joins raise, and its log."""
    log = tmp_path_factory.mktemp("faulty") / "log"
    flags = ("--thread-policy", "tests.server.faulty_in_engine.RaisesInJoins")
    with start_server(log, *flags, env=importable(ROOT)) as (address, _):
        yield address, log


def body(path, question, **more):
    chat = [{"role": "user", "content": question}]
    return {
        "/v1/chat/completions": {"messages": chat},
        "/v1/chat/completions/batch": {"messages": [chat, chat]},
        "/v1/completions": {"prompt": f"<|user|>{question}<|assistant|>", "max_tokens": 900},
        "/v1/responses": {"input": question},
        "/v1/messages": {"messages": chat, "max_tokens": 900},
    }[path] | {"model": "abacus", "temperature": 0, **more}


PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")


@pytest.mark.parametrize("path", [*PATHS, "/v1/chat/completions/batch"])
def test_a_failed_request_is_a_500_that_names_it(faulty, path):
    answer = httpx.post(f"{faulty[0]}{path}", json=body(path, FAILS), timeout=240)
    assert answer.status_code == 500
    assert re.search(r"the request \w+[-_]fj[0-9a-f]{32}.* failed", answer.json()["error"]["message"])


@pytest.mark.parametrize("path", PATHS)
def test_a_failed_stream_ends_with_an_error_that_names_the_request(faulty, path):
    answer = httpx.post(f"{faulty[0]}{path}", json=body(path, FAILS, stream=True), timeout=240)
    assert answer.status_code == 200
    events = [e for e in answer.text.split("\n\n") if e and e != "data: [DONE]"]
    assert "482*731" in "".join(re.findall(r'"(?:content|text|delta)": ?"([^"]*)"', answer.text))
    assert re.search(r"the request \w+[-_]fj[0-9a-f]{32}.* failed", events[-1])
    assert '"error"' in events[-1]
    assert "validation" not in answer.text


def test_others_beside_it_are_answered_and_it_is_counted_once(faulty):
    address, log = faulty
    path = "/v1/chat/completions"
    (alone,) = (httpx.post(f"{address}{path}", json=body(path, GOOD), timeout=240).json()["choices"],)
    before, tracebacks = _failures(address), log.read_text().count("Traceback")
    with httpx.stream("POST", f"{address}{path}", json=body(path, GOOD, stream=True), timeout=240) as beside:
        assert httpx.post(f"{address}{path}", json=body(path, FAILS), timeout=240).status_code == 500
        text = "".join(re.findall(r'"content":"((?:[^"\\]|\\.)*)"', beside.read().decode()))
    assert text.encode().decode("unicode_escape") == alone[0]["message"]["content"]
    assert _failures(address) == before + 1
    assert log.read_text().count("Traceback") == tracebacks + 1
    wait_until_idle(address, lambda: httpx.post(f"{address}{path}", json=body(path, "a=1*1"), timeout=240))


@pytest.mark.parametrize("path", PATHS)
def test_what_vllm_refuses_is_a_line_in_the_log(faulty, path):
    """Beside the one of uvicorn's: a prompt that no context holds, which no check of ours sees."""
    address, log = faulty
    before, refused = log.read_text(), body(path, "a" * 5000)
    for _ in range(3):
        assert httpx.post(f"{address}{path}", json=refused, timeout=240).status_code == 400
    told = log.read_text().removeprefix(before)
    assert "Traceback" not in told
    # vLLM says every ten seconds how much it does
    lines = [line for line in told.splitlines() if "Avg prompt throughput" not in line]
    assert len(lines) <= 2 * 3, told


def _failures(address):
    found = re.search(
        r'forkjoin:internal_errors_total\{.*where="advance"\} (\S+)',
        httpx.get(f"{address}/metrics", timeout=60).text,
    )
    return float(found[1]) if found else 0
