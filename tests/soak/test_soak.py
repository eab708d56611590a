"""Two minutes of ``make soak``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.server


def test_two_minutes_of_mixed_traffic_and_faults_leave_the_server_as_it_was():
    command = [sys.executable, "-m", "tests.soak", "--minutes", "2"]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=880, check=False
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    assert done.stdout.endswith("\nOK\n")
