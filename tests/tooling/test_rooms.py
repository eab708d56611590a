"""A folder holds so few files that a stranger can read its list; the larger ones are named here, with the reason."""

from __future__ import annotations

import subprocess
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MOST = 16

pytestmark = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="git knows which files are ours")

#: Folders of more files, and why they are no list that somebody has to keep in mind.
LARGE = {
    "client/forkjoin": "what programs import by these names; the modules of a published package",
    "deploy/helm/vllm-forkjoin/templates": "Helm wants all templates in this folder, one for each object",
    "docs": "one page or figure a file; mkdocs.yml has their order",
    "examples": "one example a file; its README has the list",
    "playground/src": "one part of the page a file",
    "tests/deploy": "one subject of deployment a file, and what they share",
    "tests/engine": "one subject a file, and the drivers, oracles and references that they share",
    "tests/server": "one subject a file, and the clients that they share",
}


def files_by_folder() -> Counter[str]:
    """How many files each folder holds itself."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    paths = [Path(line) for line in listed.stdout.splitlines()]
    return Counter(path.parent.as_posix() for path in paths if (ROOT / path).exists())


def test_no_folder_has_more_files_than_a_stranger_reads_but_those_with_a_reason() -> None:
    large = {folder: number for folder, number in files_by_folder().items() if number > MOST}
    assert large.keys() - LARGE.keys() == set(), (
        f"of over {MOST} files: group them, or give the reason: {large}"
    )


def test_no_reason_is_given_for_a_folder_that_is_small() -> None:
    number = files_by_folder()
    assert {folder: number[folder] for folder in LARGE if number[folder] <= MOST} == {}
