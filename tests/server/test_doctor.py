"""The doctor as a process of its own: what it says, and how it ends."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.server

FORKJOIN = Path(sys.executable).parent / "forkjoin"


def _doctor(*flags: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(FORKJOIN), "doctor", *flags],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"} | variables,
        timeout=300,
        check=False,
    )


def test_a_server_that_would_start_is_told_a_line_a_check():
    done = _doctor("--port", "0", FORKJOIN_MAX_FORKS="3")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split(maxsplit=2) for line in done.stdout.splitlines()]
    assert {status for status, _, _ in lines} <= {"OK", "WARN"}
    assert [name for _, name, _ in lines if name != "preload"] == [
        *(
            "python",
            "vllm",
            "system",
            "processor",
            "hub",
            "port",
            "model",
            "dialect",
            "engine",
            "options",
            "together",
            "drafts",
            "attention",
            "answers",
        ),
        *("memory", "kv_budget"),
    ]


def test_what_would_not_serve_fails_in_the_json_too():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        flags = ["--no-enable-prefix-caching", "--dialect", "npr", "--host", "127.0.0.1", "--port", port]
        done = _doctor("--json", "--api-key", "hunter2", *flags)
    assert done.returncode == 1
    said = json.loads(done.stdout)
    assert said["ok"] is False
    failed = {c["name"]: c["seen"] for c in said["checks"] if c["status"] == "FAIL"}
    assert failed.keys() >= {"dialect", "engine", "port"}
    assert "prefix caching switched off" in failed["engine"]
    assert "splits or lacks" in failed["dialect"]
    assert {"name": "api-key", "value": "***", "from": "flag"} in said["configuration"]
    assert "hunter2" not in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("flags", "variables", "sentence"),
    [
        ([], {"FORKJOIN_MAX_FORK": "1"}, "expected a variable of fork/join's, got FORKJOIN_MAX_FORK"),
        (["--config", "/no/such.yaml"], {}, "--config: expected a YAML file of flags, got /no/such.yaml"),
    ],
    ids=["variable", "file"],
)
def test_flags_that_cannot_be_are_one_sentence_and_exit_status_2(flags, variables, sentence):
    done = _doctor(*flags, **variables)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"forkjoin: {sentence}")
    assert "Traceback" not in done.stderr
