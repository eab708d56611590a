"""``forkjoin bench`` finds the benchmarks by their entry point; nothing that they import imports them."""

from __future__ import annotations

import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from forkjoin_scheduler.errors import UsageError
from forkjoin_server.start import benchmarks as found

ROOT = Path(__file__).parents[4]
GROUP = "forkjoin.commands"


def test_the_entry_point_that_the_package_declares_is_the_benchmarks_command_line(monkeypatch):
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"][GROUP]
    points = [EntryPoint(name, value, GROUP) for name, value in declared.items()]
    monkeypatch.setattr(found, "entry_points", lambda group, name: [p for p in points if p.name == name])
    assert found.benchmarks().parser().prog == "forkjoin bench"


def test_an_installation_without_it_is_told_to_install_again(monkeypatch):
    monkeypatch.setattr(found, "entry_points", lambda group, name: [])
    with pytest.raises(UsageError, match="found none: install vllm-forkjoin again"):
        found.benchmarks()


@pytest.mark.parametrize("package", ["server", "scheduler", "client"])
def test_no_arrow_leads_back_to_the_benchmarks(package):
    sources = sorted((ROOT / package).rglob("*.py"))
    assert sources
    assert [path.name for path in sources if "forkjoin_bench" in path.read_text()] == []
