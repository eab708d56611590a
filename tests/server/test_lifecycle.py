"""A server of its own, from its first line to the end of its drain."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import httpx
import pytest

from tests.server.conftest import start_server, starting_server
from tests.server.reading import metrics

pytestmark = pytest.mark.server

ASK = {
    "model": "abacus",
    "temperature": 0,
    "stream": True,
    "messages": [{"role": "user", "content": "a=482*731, b=907*36, c=913*846, d=623*547, e=819*364"}],
}

#: One runs at a time: when the drain begins, some still wait.
NUM_ASKED = 8


def _read_until(text: str, log: Path, seconds: float) -> str:
    """The log, once it has ``text``, or when the time is up."""
    end = time.monotonic() + seconds
    while text not in log.read_text() and time.monotonic() < end:
        time.sleep(0.05)
    return log.read_text()


def _is_any_left(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _num_over(answers: list[str]) -> int:
    return sum(a.endswith("[DONE]") for a in answers)


def _num_in_engine(address: str) -> float:
    lines = httpx.get(f"{address}/metrics", timeout=30).text.splitlines()
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting{")
    return sum(float(line.split()[-1]) for line in lines if line.startswith(names))


def test_it_says_how_to_ask_and_sigterm_drains_what_is_in_flight(tmp_path):
    flags = ["--max-num-seqs", "1", "--shutdown-timeout", "300"]
    with start_server(tmp_path / "log", *flags) as (address, process):
        # which is told a moment after the server is ready
        log = _read_until("}'\n", tmp_path / "log", seconds=30)
        curl = log[log.index("curl -sN") :].partition("}'\n")[0] + "}'"
        assert address in curl
        answer = subprocess.run(curl, shell=True, capture_output=True, text=True, check=True, timeout=300)
        events = [line.removeprefix("data: ") for line in answer.stdout.splitlines() if line]
        assert events[-1] == "[DONE]"
        assert json.loads(events[-2])["usage"]["forkjoin"]["num_threads"] == 2

        answers = [""] * NUM_ASKED
        forking = threading.Event()

        def ask(i: int) -> None:
            with httpx.stream("POST", f"{address}/v1/chat/completions", json=ASK, timeout=600) as response:
                for line in response.iter_lines():
                    if line.startswith("data: {"):
                        answers[i] += json.loads(line[6:])["choices"][0]["delta"].get("content") or ""
                    elif line == "data: [DONE]":
                        answers[i] += line
                    if "</Outlines>" in answers[i]:
                        forking.set()

        streams = [threading.Thread(target=ask, args=(i,)) for i in range(NUM_ASKED)]
        for stream in streams:
            stream.start()
        while _num_in_engine(address) + _num_over(answers) < NUM_ASKED:
            assert _num_over(answers) < NUM_ASKED
        assert forking.wait(120)
        process.send_signal(signal.SIGTERM)
        ready = 200
        while ready == 200:
            ready = httpx.get(f"{address}/ready", timeout=30).status_code
        refused = httpx.post(f"{address}/v1/chat/completions", json=ASK, timeout=30)
        num_over = _num_over(answers)
        for stream in streams:
            stream.join(timeout=300)
        assert ready == refused.status_code == 503
        assert "shutting down" in refused.json()["error"]["message"]
        assert num_over < NUM_ASKED
        assert [a.count("</Thread>") for a in answers] == [5] * NUM_ASKED
        assert all("total ends in" in a and a.endswith("data: [DONE]") for a in answers)
        assert process.wait(timeout=60) == 0


def test_no_api_server_hangs_up_while_another_has_requests_in_flight(tmp_path):
    with start_server(tmp_path / "log", "--api-server-count", "2") as (address, process):
        clients = [httpx.Client(timeout=60) for _ in range(8)]
        for client in clients:
            client.get(f"{address}/ready")
        with httpx.stream(
            "POST",
            f"{address}/v1/chat/completions",
            json=ASK | {"ignore_eos": True, "max_tokens": 3000},
            timeout=300,
        ) as stream:
            lines = stream.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            while clients[0].get(f"{address}/ready").status_code == 200:
                time.sleep(0.05)
            answers = [client.post(f"{address}/v1/chat/completions", json=ASK) for client in clients]
            assert list(lines)[-2:] == ["data: [DONE]", ""]
        for client in clients:
            client.close()
        assert {a.status_code for a in answers} == {503}
        assert process.wait(timeout=60) == 0


def test_what_a_drain_has_no_time_for_ends_with_an_error_and_the_server_with_it(tmp_path):
    long = ASK | {"ignore_eos": True, "max_tokens": 4000}
    with start_server(tmp_path / "log", "--shutdown-timeout", "1") as (address, process):
        url, told = f"{address}/v1/chat/completions", {}

        def ask_whole() -> None:
            told["whole"] = httpx.post(url, json=long | {"stream": False}, timeout=300)

        whole = threading.Thread(target=ask_whole)
        with httpx.stream("POST", url, json=long, timeout=300) as stream:
            lines = stream.iter_lines()
            next(lines)
            computed = metrics(address)["vllm:prompt_tokens_total"]
            whole.start()
            while metrics(address)["vllm:prompt_tokens_total"] == computed:
                pass
            process.send_signal(signal.SIGTERM)
            *_, error, done = (line for line in lines if line)
        whole.join(timeout=60)
        assert process.wait(timeout=60) == 0
    assert done == "data: [DONE]"
    assert "before this answer was over" in json.loads(error.removeprefix("data: "))["error"]["message"]
    assert told["whole"].status_code == 503
    assert told["whole"].headers["retry-after"] == "1"
    assert "before this answer was over" in told["whole"].json()["error"]["message"]


def test_sigterm_while_the_engine_starts_ends_all_processes_with_status_0(tmp_path):
    log, begun = tmp_path / "log", "Initializing a V1 LLM engine"
    with starting_server(log) as (_, process):
        assert begun in _read_until(begun, log, seconds=240)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
        end = time.monotonic() + 30
        while _is_any_left(process.pid) and time.monotonic() < end:
            time.sleep(0.05)
        assert not _is_any_left(process.pid)
    assert "Traceback" not in log.read_text()
