from __future__ import annotations

import math

import pytest

from forkjoin_server.verify.judging import BOUNDS, Bound, apart, bound_of, judge

BOUND = Bound(0.1, 0.05)


def judged(own, said):
    return judge("after", "plain", "float32", BOUND, own, said)


def test_the_same_log_probabilities_are_well():
    assert [r.difference for r in judged([-1.0, -2.0], [(-1.0, -1.0), (-2.0, -2.0)])] == [0, 0, 0]


def test_a_near_tie_is_told_apart_from_a_wrong_token():
    logprobs, _, greedy = judged([-1.0, -0.7], [(-1.02, -0.98), (-0.7, -0.7)])
    assert (logprobs.ok, greedy.ok) == (True, True)
    assert greedy.note == "2 tokens, 1 near-ties chosen otherwise"
    logprobs, _, greedy = judged([-1.0], [(-1.0, -0.5)])
    assert (logprobs.ok, greedy.ok) == (True, False)
    assert greedy.difference == pytest.approx(0.5)


def test_a_token_that_is_less_likely_than_it_was_is_wrong():
    logprobs, _, greedy = judged([-0.1, -0.1], [(-0.1, -0.1), (-3.0, -3.0)])
    assert (logprobs.ok, greedy.ok) == (False, True)


@pytest.mark.parametrize(("own", "said"), [([], []), ([-1.0], []), ([-1.0], [(-1.0, -1.0)] * 2)])
def test_a_reference_that_judged_other_tokens_has_failed(own, said):
    (result,) = judged(own, said)
    assert not result.ok


def test_a_log_probability_that_is_no_number_has_failed():
    assert not all(r.ok for r in judged([math.nan], [(-1.0, -1.0)]))
    assert not all(r.ok for r in judged([-1.0, -1.0], [(-1.0, -1.0), (math.nan, math.nan)]))


def test_tokens_that_are_each_within_their_bound_may_not_all_be_off():
    own, said = [-1.0] * 20, [(-1.09, -1.09)] * 20
    assert [r.ok for r in judged(own, said)] == [True, False, True]
    assert [r.ok for r in judged(own, [*said[:10], *[(-1.0, -1.0)] * 10])] == [True] * 3
    assert not BOUND.is_kept(apart(own, said))
    assert not BOUND.is_kept(apart([math.nan], [(-1.0, -1.0)]))


def test_on_average_less_is_allowed_than_of_one_token():
    assert all(bound.mean < bound.largest / 3 for bound in BOUNDS.values())


def test_bounds_grow_with_what_a_dtype_rounds():
    assert bound_of("float32") < bound_of("float16") < bound_of("bfloat16") < bound_of("bfloat16", "fp8_e4m3")
    assert bound_of("float8_of_some_kind") == bound_of("bfloat16")
