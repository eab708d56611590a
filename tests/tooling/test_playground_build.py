"""The playground's own tests pass, and its built files come out of its source again, byte by byte."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILT = Path("server/forkjoin_server/playground/built")


def _npm(folder: Path, *command: str) -> None:
    done = subprocess.run(
        ["npm", *command], cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """The sources, apart from this checkout, with what the lock names."""
    folder = tmp_path_factory.mktemp("playground")
    for room in ("playground", "client-ts"):
        ignored = shutil.ignore_patterns("node_modules", "dist")
        shutil.copytree(ROOT / room, folder / room, ignore=ignored)
    _npm(folder / "playground", "ci", "--no-audit", "--no-fund")
    return folder


def _files(folder: Path) -> dict[str, bytes]:
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_what_the_page_decides_by_is_right(checkout):
    _npm(checkout / "playground", "test")


def test_a_build_from_the_lock_gives_the_same_bytes(checkout):
    _npm(checkout / "playground", "run", "build")
    assert _files(checkout / BUILT) == _files(ROOT / BUILT)
