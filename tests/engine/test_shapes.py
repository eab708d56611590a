"""Families on small random models of each shape: exact on each runner, also where they lose their blocks.

All cases of a runner that are asked for run in one process (see shape_case), which imports vLLM once.
"""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

from tests.engine.shape_table import CASES, Case

pytestmark = pytest.mark.engine

#: What is wrong in the controls moves a logprob by this at least, and by twice what rounding may.
VISIBLE_NATS = 0.1


@cache
def results(runner: str, names: tuple[str, ...]) -> dict[str, dict]:
    command = [sys.executable, "-m", "tests.engine.shape_case", *runner.split("-"), *names]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=1800, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("CASE ")]
    found = dict(json.loads(line.removeprefix("CASE ")) for line in lines)
    assert set(found) == set(names), done.stdout[-2000:] + done.stderr[-4000:]
    return found


def runs_here(case: Case) -> bool:
    """Whether vLLM has the case's KV cache on this CPU."""
    return case.shape != "fp8_kv" or torch.cpu._is_avx512_supported()


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.runner}-{c.name}")
def test_a_family_on_a_model_of_this_shape_is_exact(request, case: Case):
    if not runs_here(case):
        pytest.skip("a CPU without AVX-512: vLLM has no fp8 KV cache there")
    asked = [item.callspec.params["case"] for item in request.session.items if item.path == request.path]
    names = [c.name for c in asked if c.runner == case.runner and runs_here(c)]
    found = results(case.runner, tuple(names))[case.name]
    runner, mode = case.runner.split("-")
    assert (found["runner"], found["async"]) == (runner, mode == "async")
    assert found["num_threads"] == 6
    assert found["returned"]
    assert max(found["max_delta"], found["restored"]) <= found["nats"]
    assert found["control"] > max(2 * found["nats"], VISIBLE_NATS)
