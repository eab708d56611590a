"""The tiers leave no test out, and name none that is not there."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiers import LATER, Tier, tier_of, unused

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("test_id", "tier"),
    [
        ("tests/unit/scheduler/families/test_fork.py::test_a", Tier.FIRST),
        ("tests/engine/test_matrix.py::test_a[v1-sync]", Tier.CI),
        ("tests/engine/test_matrix_of_others.py::test_a", Tier.FIRST),
    ],
    ids=["named_nowhere", "in_a_file_that_is_named", "in_a_file_that_begins_alike"],
)
def test_a_test_is_of_the_first_tier_unless_it_or_its_file_is_named(test_id, tier):
    assert tier_of(test_id) is tier


def test_the_name_of_a_test_counts_more_than_that_of_its_file(monkeypatch):
    monkeypatch.setitem(LATER, "tests/a.py", LATER["tests/engine/test_async.py"]._replace(tier=Tier.ALL))
    monkeypatch.setitem(LATER, "tests/a.py::test_b", LATER["tests/engine/test_async.py"])
    assert tier_of("tests/a.py::test_b[1]") is Tier.CI
    assert tier_of("tests/a.py::test_bc") is Tier.ALL


def test_the_file_of_each_later_test_is_there():
    assert [key for key in LATER if not (ROOT / key.split("::")[0]).is_file()] == []


@pytest.mark.parametrize(
    ("target", "tier"), [(["test"], "first"), (["test", "TIER=ci"], "ci"), (["test-all"], "all")]
)
def test_make_runs_the_tier_that_it_says(target, tier):
    # What the make that runs these tests was told is not for this one.
    env = {
        name: value
        for name, value in os.environ.items()
        if name not in ("MAKEFLAGS", "MAKEOVERRIDES", "TIER")
    }
    done = subprocess.run(
        ["make", "-n", *target], cwd=ROOT, env=env, capture_output=True, text=True, check=True
    )
    assert re.search(rf"-m pytest .*--tier {tier} *$", done.stdout, re.MULTILINE)


def test_ci_runs_the_first_two_tiers_and_their_outcome_is_its_own():
    assert "make test TIER=ci || status=1\nexit $status\n" in (ROOT / ".ci/run").read_text()


def test_every_test_of_the_repository_is_of_a_tier():
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:]
    ids = [line for line in done.stdout.splitlines() if "::" in line]
    assert set(written()) <= {test_id.split("[")[0] for test_id in ids}
    assert unused(ids) == []


def written() -> list[str]:
    """The id of each test function in the repository."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [
        f"{path.relative_to(ROOT)}::{node.name}"
        for path in files
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    ]
