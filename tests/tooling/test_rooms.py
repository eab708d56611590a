"""A folder holds so few files that a stranger can read its list; the larger ones are named here, with the reason."""

from __future__ import annotations

import ast
import subprocess
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MOST = 16

pytestmark = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="git knows which files are ours")

#: Folders of more files, and why they are no list that somebody has to keep in mind.
LARGE = {
    "client/forkjoin": "what programs import by these names; the modules of a published package",
    "configs/dialects": "one dialect a file; docs/dialects.md has the list",
    "configs/examples": "one machine and dialect a file, named so; its README says how",
    "deploy/helm/vllm-forkjoin/templates": "Helm wants all templates in this folder, one for each object",
    "docs": "one page or figure a file; mkdocs.yml has their order",
    "examples": "one example a file; its README has the list",
    "playground/src": "one part of the page a file",
    "requirements": "one environment a lock, and what it is made of; scripts/lock has the list",
    "tests/bench": "one command of the benchmarks a file",
    "tests/deploy": "one subject of deployment a file, and what they share",
    "tests/engine": "one subject a file, and the drivers, oracles and references that they share",
    "tests/server": "one subject a file, and the clients that they share",
}


SERVER = ROOT / "server/forkjoin_server"
#: The room that all others may ask, and that may ask all others: it imports vLLM.
SEAM = "vllm_seam"


def rooms_imported(package: Path) -> dict[str, set[str]]:
    """Which rooms (and modules beside them) of ``package`` the files of each import."""
    imported: dict[str, set[str]] = {}
    for path in package.rglob("*.py"):
        room = path.relative_to(package).parts[0].removesuffix(".py")
        others = imported.setdefault(room, set())
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
                found = [name.split(".")[1] for name in names if name.startswith(f"{package.name}.")]
                others |= {*found} - {room, SEAM}
    del imported[SEAM]
    return imported


def test_no_rooms_of_the_server_import_each_other_in_a_circle() -> None:
    imported = rooms_imported(SERVER)
    assert len(imported) > 5
    try:
        TopologicalSorter(imported).prepare()
    except CycleError as error:
        pytest.fail(f"expected rooms that can be read one after the other, got {error.args[1]}")


#: The packages that ``tests/unit`` mirrors.
MIRRORED = {
    "scheduler": "scheduler/forkjoin_scheduler",
    "server": "server/forkjoin_server",
    "benchmarks": "benchmarks/forkjoin_bench",
}
#: Tests of what no one module does, and of what.
OF_NO_MODULE = {
    "tests/unit/scheduler/dialects/test_published.py": "the dialect files that come with the package"
}


def has_its_module(test: Path) -> bool:
    """Whether ``test``, a path below ``tests/unit``, has the name and place of a module, or of a whole room."""
    package, *rooms = test.relative_to(ROOT / "tests/unit").parent.parts
    name = test.stem.removeprefix("test_")
    place = ROOT.joinpath(MIRRORED[package], *rooms)
    return (place / f"{name}.py").exists() or (place / name).is_dir() or name == place.name


def test_each_unit_test_stands_where_its_module_stands() -> None:
    tests = [path for package in MIRRORED for path in (ROOT / "tests/unit" / package).rglob("test_*.py")]
    assert len(tests) > 50
    lost = {path.relative_to(ROOT).as_posix() for path in tests if not has_its_module(path)}
    assert lost == OF_NO_MODULE.keys()


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
