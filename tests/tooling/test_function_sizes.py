"""No function of our packages is longer than a screen: what grows is split by idea."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("scheduler", "server", "benchmarks", "client", "docgen", "scripts")
MOST = 60


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """The functions of a file, and how many lines each has, from ``def`` on."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield node.name, node.end_lineno - node.lineno + 1


@pytest.mark.parametrize("package", PACKAGES)
def test_no_function_has_more_lines_than_a_reader_sees_at_once(package: str) -> None:
    files = list((ROOT / package).rglob("*.py"))
    assert files
    long = {f"{p.relative_to(ROOT)}:{name}": num for p in files for name, num in functions(p) if num > MOST}
    assert long == {}, f"of over {MOST} lines: split them by idea"


def test_the_lines_of_a_function_are_counted(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text("@cached\ndef f():\n    x = 1\n\n    async def g():\n        pass\n")
    assert dict(functions(file)) == {"f": 5, "g": 2}
