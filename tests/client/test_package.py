"""What the package asks of a machine."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "client/forkjoin").rglob("*.py"))


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").partition(".")[0]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_it_needs_httpx_and_pydantic_and_for_the_terminal_rich_and_for_figures_matplotlib(path):
    allowed = {"forkjoin", "httpx", "pydantic", *sys.stdlib_module_names}
    if "terminal" in path.parts:
        allowed.add("rich")
    if path.name == "drawing.py":
        allowed.add("matplotlib")
    assert set(_imports(path)) <= allowed


@pytest.mark.parametrize(
    ("code", "unwanted"),
    [
        ("import forkjoin", "openai matplotlib vllm torch"),
        ("from forkjoin import *", "openai matplotlib vllm torch"),
        ("from forkjoin_server.cli import main; main(['--help'])", "rich httpx matplotlib vllm torch"),
    ],
    ids=["client", "all_of_it", "help"],
)
def test_what_is_not_needed_is_not_imported(code, unwanted):
    tried = f"import sys\ntry:\n  {code}\nexcept SystemExit: pass\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", tried], capture_output=True, text=True, check=True)
    assert set(unwanted.split()) & set(done.stdout.splitlines()[-1].split()) == set()
