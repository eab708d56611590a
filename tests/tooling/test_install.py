"""``scripts/install``, up to where it would begin to fetch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PREREQUISITES = "server/forkjoin_server/doctor/prerequisites.py"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what the script reads."""
    for name in ("scripts", "requirements"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / PREREQUISITES).parent.mkdir(parents=True)
    shutil.copy(ROOT / PREREQUISITES, tmp_path / PREREQUISITES)
    return tmp_path


def test_an_unfit_python_is_refused_by_its_version_and_leaves_no_venv(checkout: Path) -> None:
    python = checkout / "python3"
    python.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.2 && exit 0\nexit 1\n')
    python.chmod(0o755)
    done = subprocess.run(
        [checkout / "scripts/install"],
        env=os.environ | {"PYTHON": str(python)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "Python 3.9.2" in done.stderr
    assert not (checkout / ".venv").exists()


def test_a_missing_compiler_is_named_with_its_command_and_leaves_no_venv(checkout: Path) -> None:
    done = subprocess.run(
        [checkout / "scripts/install"],
        env=os.environ | {"CXX": "a-compiler-that-is-not-there", "PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("missing: a C++ compiler (")
    assert len(done.stderr.splitlines()) == 1
    assert not (checkout / ".venv").exists()
