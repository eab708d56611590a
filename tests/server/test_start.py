"""What cannot be served is refused in one sentence, before an engine starts."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from forkjoin_server.access.keys import line_of
from tests.importing import importable

pytestmark = pytest.mark.server

FORKJOIN = Path(sys.executable).parent / "forkjoin"


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--no-enable-prefix-caching"], "fork/join can't be combined with prefix caching switched off"),
        (["--dialect", "parallel-r1"], "dialect 'parallel-r1' needs each of its control tokens"),
        (["--dialect", "npr", "--api-server-count", "2"], "dialect 'npr' needs each of its control tokens"),
        (["--dialect", "none", "--max-forks", "1"], "--max-forks: expected a dialect"),
        (
            ["--otlp-traces-endpoint", "http://127.0.0.1:1", "--disable-log-stats"],
            "--otlp-traces-endpoint: expected no --disable",
        ),
        (["--otlp-traces-endpoint", "http://me:secret@host"], "--otlp-traces-endpoint: expected no user"),
    ],
    ids=["engine_option", "tokenizer", "several_api_servers", "useless_flag", "no_stats", "user_in_grpc_url"],
)
def test_it_ends_with_one_sentence_and_exit_status_2(flags, sentence):
    done = _serve(*flags)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"forkjoin: {sentence}")
    assert "Traceback" not in done.stdout + done.stderr
    assert "EngineCore" not in done.stdout + done.stderr


def test_traces_without_the_packages_that_export_them_name_the_extra(tmp_path):
    (tmp_path / "opentelemetry.py").write_text("raise ImportError('not installed')")
    done = _serve("--otlp-traces-endpoint", "http://127.0.0.1:1", **importable(tmp_path))
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("install vllm-forkjoin[otel]")
    assert "Traceback" not in done.stdout + done.stderr


def test_a_sighup_in_its_first_moments_ends_nothing(tmp_path):
    """As an operator's who has just written the file of keys: the start goes on to its own end."""
    path = tmp_path / "keys.yaml"
    path.write_text(line_of("a", "k"))
    flags = ["--api-key-file", str(path), "--no-enable-prefix-caching"]
    with subprocess.Popen([str(FORKJOIN), "serve", *flags], stderr=subprocess.PIPE, text=True) as process:
        while not _holds(process.pid, signal.SIGHUP):
            assert process.poll() is None, "it ended, and had never held the signal"
            time.sleep(0.001)
        process.send_signal(signal.SIGHUP)
        _, stderr = process.communicate(timeout=800)
    assert process.returncode == 2
    assert stderr.splitlines()[-1].startswith("forkjoin: fork/join can't be combined")


def _holds(pid: int, number: int) -> bool:
    """Whether a process blocks a signal."""
    blocked = re.search(r"SigBlk:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    return bool(blocked and int(blocked[1], 16) >> (number - 1) & 1)


def _serve(*flags: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(FORKJOIN), "serve", "--port", "0", "--max-model-len", "1024", *flags],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"} | env,
        timeout=800,
        check=False,
    )
