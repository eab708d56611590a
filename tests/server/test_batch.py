"""``forkjoin run-batch`` against a real server, and killed while that answers."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.server.unhurried import taking

pytestmark = pytest.mark.server

QUESTION = "a=482*731, b=9047*36"
MESSAGES = [{"role": "user", "content": QUESTION}]
COMPLETION = {"prompt": f"<|user|>{QUESTION}<|assistant|>", "max_tokens": 900}
THREADS = {"forkjoin": {"include_threads": True}}
#: The last one is asked when all others have rows. The run is killed while it is answered, which takes seconds.
REQUESTS = {
    "chat": ("/v1/chat/completions", {"messages": MESSAGES} | THREADS),
    "wrong": ("/v1/chat/completions", {"messages": MESSAGES, "forkjoin": {"max_fork": 1}}),
    "response": ("/v1/responses", {"input": QUESTION} | THREADS),
    "completion": ("/v1/completions", COMPLETION | {"forkjoin": {"max_forks": 0}}),
    "slow": ("/v1/completions", COMPLETION | taking(0.01)),
}


def _line(name: str, url: str, body: dict[str, Any]) -> str:
    asked = {"model": "abacus", "temperature": 0} | body
    return json.dumps({"custom_id": name, "method": "POST", "url": url, "body": asked}) + "\n"


def start_batch(source: Path, target: Path, *flags: str) -> subprocess.Popen[str]:
    """``forkjoin run-batch`` in a process of its own."""
    command = [
        str(Path(sys.executable).parent / "forkjoin"),
        "run-batch",
        "-i",
        str(source),
        "-o",
        str(target),
    ]
    return subprocess.Popen([*command, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def rows_of(target: Path) -> dict[str, dict[str, Any]]:
    """What the whole rows of an output say, by ``custom_id``; each has one."""
    text = target.read_text() if target.exists() else ""
    rows = [json.loads(row) for row in text.splitlines(keepends=True) if row.endswith("\n")]
    by_id = {row["custom_id"]: row for row in rows}
    assert len(by_id) == len(rows)
    return by_id


def until_rows(number: int, target: Path, run: subprocess.Popen[str]) -> None:
    """Return when the output has so many rows, and ``run`` goes on."""
    while len(rows_of(target)) < number:
        assert run.poll() is None, run.communicate()[1]
        time.sleep(0.02)


@pytest.fixture(scope="module")
def batch(server, tmp_path_factory):
    """What a run has written that was killed, and all that the next one had written in the end."""
    folder = tmp_path_factory.mktemp("batch")
    source, target = folder / "in.jsonl", folder / "out.jsonl"
    source.write_text("".join(_line(name, *request) for name, request in REQUESTS.items()))
    flags = ("--url", server, "--max-concurrency", "1")
    killed = start_batch(source, target, *flags)
    until_rows(len(REQUESTS) - 1, target, killed)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    before = target.read_text()
    second = start_batch(source, target, *flags)
    _, said = second.communicate(timeout=300)
    assert second.returncode == 1  # one line is wrong
    return before, target, said


def test_the_run_after_a_killed_one_asks_only_what_has_no_answer(batch):
    before, target, said = batch
    answered = [row for row in before.splitlines() if json.loads(row)["custom_id"] not in ("slow", "wrong")]
    after = target.read_text().splitlines()
    assert after[: len(answered)] == answered
    assert {json.loads(row)["custom_id"] for row in after[len(answered) :]} == {"slow", "wrong"}
    assert said.splitlines()[0] == "run-batch: 3 of 5 answered"
    assert "4 of 5 answered, 1 failed, " in said.splitlines()[-1]


def test_each_request_has_the_answer_of_its_route(batch, client):
    rows = rows_of(batch[1])
    assert {row["response"]["status_code"] for name, row in rows.items() if name != "wrong"} == {200}
    bodies = {name: row["response"]["body"] for name, row in rows.items()}
    counts = {
        name: body.get("usage", {}).get("forkjoin", {}).get("num_threads") for name, body in bodies.items()
    }
    assert counts == {"chat": 2, "response": 2, "slow": 2, "completion": 0, "wrong": None}
    chat = client.chat.completions.create(
        model="abacus", temperature=0, messages=MESSAGES, extra_body=THREADS
    )
    message = bodies["chat"]["choices"][0]["message"]
    assert message["content"] == bodies["slow"]["choices"][0]["text"] == chat.choices[0].message.content
    assert [t["content"] for t in message["threads"]] == [
        t["content"] for t in chat.choices[0].message.threads
    ]
    items = [i for i in bodies["response"]["output"] if i["type"] == "reasoning"]
    assert [i["thread"]["title"] for i in items] == [t["title"] for t in message["threads"]]


def test_a_request_that_the_server_refuses_has_its_error_as_its_response(batch):
    wrong = rows_of(batch[1])["wrong"]
    assert wrong["response"]["status_code"] == 400
    assert "max_fork: unknown key" in wrong["response"]["body"]["error"]["message"]
    assert wrong["error"] is None
