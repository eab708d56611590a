"""Environments that tests install for themselves, beside the project's own."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def programs(script: str) -> Path:
    """The programs of the environment that ``scripts/SCRIPT`` installs if it is not there.

    That it can't be installed is a failure, no skip.
    """
    done = subprocess.run([ROOT / "scripts" / script], capture_output=True, text=True)
    if done.returncode:
        pytest.fail(f"scripts/{script}:\n{done.stderr[-3000:]}")
    return Path(done.stdout.splitlines()[-1]) / "bin"
