"""Speculative decoding on the real model: each cell in a process of its own (see drafts_case)."""

from __future__ import annotations

import pytest

from tests.engine.processes import case_of

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
    case = case_of("tests.engine.drafts_case", runner, mode, method, str(num), dialect, timeout_s=1200)
    assert (case["runner"], case["async"]) == (runner, mode == "async")
    assert case["num_equal"] == [num, num]
    undrafted, drafted, robbed = case["threads"]
    assert drafted == robbed == undrafted
    assert sum(drafted) >= (2 if runner == "v2" else 8)
    undrafted, drafted = case["stopped"]
    assert drafted == undrafted
    assert any(stop_reason for _, stop_reason in drafted)
    undrafted, drafted = case["several"]
    assert drafted == undrafted
    assert len(drafted) == 2
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


@pytest.mark.parametrize("method", ["ngram", "draft_model"])
def test_drafted_threads_draw_as_others_do(method):
    num = 600
    case = case_of("tests.engine.draws_case", method, str(num), timeout_s=1200)
    assert min(case["likelihoods"]) > 1e-3, case  # of a thousand sound engines, some three miss it
    assert min(case["num_runs"]) > 100  # else there is nothing that could differ
    undrafted, drafted = case["num_steps"]
    assert drafted < undrafted
