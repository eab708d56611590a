"""``scripts/once``: a folder is made once, and again when what it is made of has changed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = """
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/once
make() { mkdir -p build/it; echo made >>build/log; [ "$(cat lock)" != bad ]; echo end >>build/log; }
once build/it make lock
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/once", tmp_path / "scripts")
    (tmp_path / "scripts/install-it").write_text(SCRIPT)
    (tmp_path / "lock").write_text("a==1")
    return tmp_path


def install(checkout: Path) -> subprocess.CompletedProcess[str]:
    """The script's end, run from elsewhere."""
    command = ["bash", "scripts/install-it"]
    return subprocess.run(command, cwd=checkout, capture_output=True, text=True)


def log(checkout: Path) -> list[str]:
    return (checkout / "build/log").read_text().split()


def test_a_folder_is_made_once_and_named_each_time(checkout: Path) -> None:
    for _ in range(2):
        assert install(checkout).stdout == f"{checkout}/build/it\n"
    assert log(checkout) == ["made", "end"]


@pytest.mark.parametrize("changed", ["lock", "scripts/install-it"])
def test_it_is_made_again_when_what_it_is_made_of_has_changed(checkout: Path, changed: str) -> None:
    install(checkout)
    with (checkout / changed).open("a") as file:
        file.write("\n# another")
    install(checkout)
    assert log(checkout) == ["made", "end"] * 2


def test_one_that_moved_is_made_again(checkout: Path) -> None:
    install(checkout)
    moved = checkout.rename(checkout.with_name("moved"))
    assert install(moved).stdout == f"{moved}/build/it\n"
    assert log(moved) == ["made", "end"] * 2


def test_what_failed_is_not_taken_for_made(checkout: Path) -> None:
    (checkout / "lock").write_text("bad")
    for _ in range(2):
        done = install(checkout)
        assert done.returncode
        assert done.stdout == ""
    assert log(checkout) == ["made", "made"]
