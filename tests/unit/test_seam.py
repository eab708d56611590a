"""The five rules of the seam to vLLM."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted([*ROOT.glob("scheduler/**/*.py"), *ROOT.glob("server/**/*.py")])
SEAM = {"scheduler/forkjoin_scheduler/vllm_seam", "server/forkjoin_server/vllm_seam.py"}


def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_only_the_seam_imports_vllm_and_torch(path):
    name = str(path.relative_to(ROOT))
    if not any(name.startswith(seam) for seam in SEAM):
        assert not _imports(path) & {"vllm", "torch"}


def test_only_kv_py_touches_the_kv_cache_managers_insides():
    touching = {
        p.name for p in SOURCES if "single_type_managers" in p.read_text() or "block_pool" in p.read_text()
    }
    assert touching == {"kv.py"}


def test_the_scheduler_extends_async_scheduler_and_calls_super():
    path = ROOT / "scheduler/forkjoin_scheduler/vllm_seam/scheduler.py"
    cls = next(n for n in ast.parse(path.read_text()).body if isinstance(n, ast.ClassDef) and n.bases)
    assert [ast.unparse(b) for b in cls.bases] == ["AsyncScheduler"]
    schedule = next(n for n in cls.body if isinstance(n, ast.FunctionDef) and n.name == "schedule")
    assert "super().schedule(" in ast.unparse(schedule)
    assert len(ast.unparse(schedule).splitlines()) < 10


@pytest.mark.parametrize(
    "name",
    ["_update_request_with_output", "_get_local_prefix_cache_hit", "_free_request_blocks",
     "_enqueue_waiting_request"],
)  # fmt: skip
def test_the_private_members_that_we_build_on_exist(name):
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler

    assert callable(getattr(AsyncScheduler, name))
