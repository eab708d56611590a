"""Families on small random models of each shape: exact on each runner, also where they lose their blocks.

All cases of a runner that are asked for run in one process (see shape_case), which imports vLLM once. Those with experts
run in another: vLLM makes the group of their ranks with the first engine of a process, or never. On the V2 runner, under
Triton's interpreter, a case takes minutes, and those of each join have a process of their own.
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

pytestmark = [pytest.mark.engine, pytest.mark.timeout(2000)]

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


WITH_EXPERTS = {"moe", "gpt_oss", "gdn", "mla", "mla_native"}


def share_a_process(a: Case, b: Case) -> bool:
    same_kind = (a.shape in WITH_EXPERTS) == (b.shape in WITH_EXPERTS)
    return a.runner == b.runner and same_kind and (a.join == b.join or a.runner.startswith("v1"))


def lacks(case: Case) -> str | None:
    """What of vLLM's a case needs that it has not on this CPU."""
    if case.shape == "fp8_kv" and not torch.cpu._is_avx512_supported():
        return "a CPU without AVX-512: vLLM has no fp8 KV cache there"
    if case.shape in ("awq", "gptq") and not torch.cpu._is_avx512_supported():
        return "a CPU without AVX-512: vLLM has no kernel for weights in int4 there"
    if case.shape.startswith("mla") and not torch.cpu._is_amx_tile_supported():
        return "a CPU without AMX: vLLM switches prefix caching off for MLA there, which is refused"
    if case.shape == "gdn" and not torch.cpu._is_avx512_bf16_supported():
        return "a CPU without AVX-512 for bf16: vLLM computes gated DeltaNet by other code there"
    return None


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.runner}-{c.name}")
def test_a_family_on_a_model_of_this_shape_is_exact_or_refused(request, case: Case):
    if reason := lacks(case):
        pytest.skip(reason)
    asked = [item.callspec.params["case"] for item in request.session.items if item.path == request.path]
    # a refused engine last: it may leave something behind
    asked.sort(key=lambda c: c.refused is not None)
    names = [c.name for c in asked if share_a_process(c, case) and not lacks(c)]
    found = results(case.runner, tuple(names))[case.name]
    if case.refused:
        assert case.refused in found["refused"]
        return
    assert "refused" not in found, found
    runner, mode = case.runner.split("-")
    assert (found["runner"], found["async"]) == (runner, mode == "async")
    assert found["num_threads"] == 6
    assert found["returned"]
    assert max(found["max_delta"], found["restored"]) <= found["nats"]
    assert found["control"] > max(2 * found["nats"], VISIBLE_NATS)
