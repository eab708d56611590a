"""A real engine with vLLM's ``OffloadingConnector``: families that lose KV load it, and are exact."""

from __future__ import annotations

import pytest

from tests.engine.hybrid_case import NATS
from tests.engine.processes import case_of

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1800)]


def _case(*args):
    case = case_of("tests.engine.offloaded_case", *args)
    assert case["returned"]
    return case


def _assert_same(ours, theirs):
    assert all(ours["forked"])
    assert ours["tokens"] == theirs["tokens"]
    pairs = [
        zip(*of_answer, strict=True) for of_answer in zip(ours["logprobs"], theirs["logprobs"], strict=True)
    ]
    assert max(abs(a - b) for pair in pairs for a, b in pair) < NATS


@pytest.mark.parametrize(
    ("runner", "mode"), [("v1", "sync"), ("v1", "async"), ("v2", "sync"), ("v2", "async")], ids=str
)
def test_families_that_lose_their_kv_to_others_load_it_and_end_as_they_do_alone(runner, mode):
    case = _case(runner, mode)
    assert (case["runner"], case["async"]) == (runner, mode == "async")
    assert case["alone"]["loads"] == 0
    assert case["together"]["loads"]
    _assert_same(case["together"], case["alone"])


def test_an_engine_loads_what_one_before_it_has_stored_in_files_and_its_families_are_the_same(tmp_path):
    first = _case("v1", "async", tmp_path)
    assert first["alone"]["loads"] == 0
    second = _case("v1", "async", tmp_path)
    assert second["alone"]["loads"]
    for run in ("alone", "together"):
        _assert_same(second[run], first["alone"])
