"""Both model runners, sync and async: each cell in a process of its own (see matrix_case)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.engine


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("runner", ["v1", "v2"])
def test_fork_and_join_are_exact_on_each_runner_and_scheduling(runner, mode):
    command = [sys.executable, "-m", "tests.engine.matrix_case", runner, mode]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=840, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("CASE ")]
    assert lines, done.stdout[-2000:] + done.stderr[-4000:]
    case = json.loads(lines[0].removeprefix("CASE "))
    assert (case["runner"], case["async"]) == (runner, mode == "async")
    assert case["exact"]
    assert case["returned"]
    assert case["num_threads"] >= 4
    # "\n<Thread>\n1:" has 5 tokens; in sync mode the trigger has no KV yet
    assert case["first_thread_step_tokens"] == (5 if mode == "async" else 6)
