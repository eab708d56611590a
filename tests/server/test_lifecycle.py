"""A server of its own, from its first line to the end of its drain."""

from __future__ import annotations

import json
import signal
import subprocess
import threading

import httpx
import pytest

from tests.server.conftest import start_server

pytestmark = pytest.mark.server

ASK = {
    "model": "abacus",
    "temperature": 0,
    "stream": True,
    "messages": [{"role": "user", "content": "a=482*731, b=907*36, c=913*846, d=623*547, e=819*364"}],
}


def test_it_says_how_to_ask_and_sigterm_drains_what_is_in_flight(tmp_path):
    with start_server(tmp_path / "log", "--max-num-seqs", "1") as (address, process):
        log = (tmp_path / "log").read_text()
        curl = log[log.index("curl -sN") :].partition("}'\n")[0] + "}'"
        assert address in curl
        answer = subprocess.run(curl, shell=True, capture_output=True, text=True, check=True, timeout=300)
        events = [line.removeprefix("data: ") for line in answer.stdout.splitlines() if line]
        assert events[-1] == "[DONE]"
        assert json.loads(events[-2])["usage"]["forkjoin"]["num_threads"] == 2

        content: list[str] = []
        forking, over = threading.Event(), threading.Event()

        def ask():
            with httpx.stream("POST", f"{address}/v1/chat/completions", json=ASK, timeout=300) as response:
                for line in response.iter_lines():
                    if line.startswith("data: {"):
                        content.append(json.loads(line[6:])["choices"][0]["delta"].get("content") or "")
                    elif line == "data: [DONE]":
                        over.set()
                    if "</Outlines>" in "".join(content[-3:]):
                        forking.set()

        stream = threading.Thread(target=ask)
        stream.start()
        assert forking.wait(120)
        process.send_signal(signal.SIGTERM)
        statuses = {"ready": 200}
        while statuses["ready"] == 200:
            statuses["ready"] = httpx.get(f"{address}/ready", timeout=30).status_code
        refused = httpx.post(f"{address}/v1/chat/completions", json=ASK, timeout=30)
        was_over = over.is_set()
        stream.join(timeout=120)
        assert statuses["ready"] == refused.status_code == 503
        assert "shutting down" in refused.json()["error"]["message"]
        assert not was_over
        assert over.is_set()
        assert "".join(content).count("</Thread>") == 5
        assert "total ends in" in "".join(content)
        assert process.wait(timeout=60) == 0
