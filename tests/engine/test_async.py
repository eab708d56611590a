"""Async scheduling, the default on GPUs, forced on: what this folder tests elsewhere without it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.engine

FOLDER = Path(__file__).parent
#: Malformed output and limits, every dialect, the progressive join, and families that lose their blocks.
FILES = (
    "test_dialects",
    "test_malformed",
    "test_ahead",
    "test_pressure",
    "test_stitched_pressure",
    "test_scheduling",
    "test_new_weights",
)


@pytest.mark.skipif("FORKJOIN_TEST_ASYNC" in os.environ, reason="this is the run with it on")
@pytest.mark.parametrize("name", FILES)
def test_forks_and_joins_are_the_same_with_steps_in_flight(name):
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--show-capture=no",
        "--tb=short",
    ]
    done = subprocess.run(
        [*command, str(FOLDER / f"{name}.py")],
        cwd=FOLDER.parents[1],
        env=os.environ | {"FORKJOIN_TEST_ASYNC": "1"},
        capture_output=True,
        text=True,
        timeout=880,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    assert "failed" not in done.stdout.splitlines()[-1]
