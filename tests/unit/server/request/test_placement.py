from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkjoin_scheduler.publish.feed import is_placed, key_in, new_key, new_placed_key
from forkjoin_scheduler.request.options import RequestOptions
from forkjoin_server.request.placement import engine_of, place


def _place(num_engines, **asked):
    return place(RequestOptions(**asked), num_engines)


def test_one_engine_needs_no_choice_and_vllm_chooses_for_what_shares_nothing():
    assert _place(1, group_id="g", keep=5, continues="chatcmpl-x").engine is None
    assert _place(4).engine is None


@given(st.text(min_size=1, max_size=20), st.integers(2, 16))
def test_all_of_a_group_run_on_one_engine(group_id, num_engines):
    placed = [
        _place(num_engines, group_id=group_id, **more) for more in ({}, {"keep": 5}, {"continues": "x"})
    ]
    assert {placement.engine for placement in placed} == {engine_of(group_id, num_engines)}


@pytest.mark.parametrize("num_engines", [2, 3, 16])
@pytest.mark.parametrize(
    "asked",
    [{}, {"group_id": "g"}, {"continues": f"resp_{new_placed_key()}"}],
    ids=["alone", "group", "continues"],
)
def test_what_goes_on_from_a_kept_answer_runs_where_that_one_is_kept(num_engines, asked):
    kept = _place(num_engines, keep=5, **asked)
    for answer_id in (f"chatcmpl-{kept.key}", f"resp_{kept.key}", f"cmpl-mine-{kept.key}"):
        assert _place(num_engines, continues=answer_id).engine == kept.engine
    again = _place(num_engines, continues=f"chatcmpl-{kept.key}", keep=5)
    assert _place(num_engines, continues=f"chatcmpl-{again.key}").engine == kept.engine


@pytest.mark.parametrize(
    "answer_id", [f"resp_{new_key()}", "resp_of_another_server", ""], ids=["ours", "another", "none"]
)
def test_what_goes_on_from_an_answer_that_is_not_kept_runs_anywhere(answer_id):
    assert _place(4, continues=answer_id).engine is None
    assert _place(4, continues=answer_id, keep=5).engine is not None


def test_only_keys_of_kept_answers_are_marked():
    marked = [is_placed(key) for make in (new_key, new_placed_key) for key in (make() for _ in range(50))]
    assert marked == [False] * 50 + [True] * 50
    assert key_in(f"cmpl-{(key := new_placed_key())}-0") == key


def test_each_engine_gets_its_part():
    counts = Counter(engine_of(f"group {number}", 4) for number in range(4000))
    assert set(counts) == set(range(4))
    assert all(800 < count < 1200 for count in counts.values())
