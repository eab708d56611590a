"""Speculative decoding on the real model: each cell in a process of its own (see drafts_case)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.engine

#: (model runner, scheduling, drafter, dialect)
CASES = [
    ("v1", "sync", "ngram", "threadweaver"),
    ("v1", "async", "draft_model", "threadweaver"),
    ("v2", "async", "draft_model", "threadweaver"),
    ("v1", "sync", "ngram", "multiverse"),
]
OTHERS = [
    ("v1", "sync", "suffix", "threadweaver"),
    ("v1", "sync", "suffix", "multiverse"),
    ("v1", "sync", "draft_model", "threadweaver"),
    ("v1", "sync", "eagle", "threadweaver"),
    ("v1", "async", "eagle", "threadweaver"),
    ("v1", "async", "eagle3", "threadweaver"),
    ("v2", "sync", "draft_model", "threadweaver"),
    ("v2", "async", "eagle", "threadweaver"),
    ("v1", "sync", "mtp", "threadweaver"),
]


def check_case(runner, mode, method, dialect):
    num = 2 if runner == "v2" else 6
    command = [sys.executable, "-m", "tests.engine.drafts_case", runner, mode, method, str(num), dialect]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=1200, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("CASE ")]
    assert lines, done.stdout[-2000:] + done.stderr[-4000:]
    case = json.loads(lines[0].removeprefix("CASE "))
    assert (case["runner"], case["async"]) == (runner, mode == "async")
    assert case["num_equal"] == [num, num]
    undrafted, drafted, robbed = case["threads"]
    assert drafted == robbed == undrafted
    assert sum(drafted) >= (2 if runner == "v2" else 8)
    undrafted, drafted = case["stopped"]
    assert drafted == undrafted
    assert any(stop_reason for _, stop_reason in drafted)
    assert case["max_delta"] < 1e-3
    assert case["returned"]
    before, after = case["num_steps"]
    if method == "draft_model":  # the same weights: nothing that it drafts is wrong
        assert after < before / 2.5
    elif method in ("ngram", "suffix"):
        assert after < before


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_drafts_change_nothing_but_the_speed(case):
    check_case(*case)


@pytest.mark.parametrize("case", OTHERS, ids="-".join)
def test_other_drafters_change_no_more(case):
    check_case(*case)
