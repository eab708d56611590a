from __future__ import annotations

import math

import pytest

from forkjoin_server.verify.judging import bound_of, judge


def judged(own, said, bound=0.1):
    return judge("after", "plain", "float32", bound, own, said)


def test_the_same_log_probabilities_are_well():
    assert [r.difference for r in judged([-1.0, -2.0], [(-1.0, -1.0), (-2.0, -2.0)])] == [0, 0]


def test_a_near_tie_is_told_apart_from_a_wrong_token():
    logprobs, greedy = judged([-1.0, -0.7], [(-1.02, -0.98), (-0.7, -0.7)])
    assert (logprobs.ok, greedy.ok) == (True, True)
    assert greedy.note == "2 tokens, 1 near-ties chosen otherwise"
    logprobs, greedy = judged([-1.0], [(-1.0, -0.5)])
    assert (logprobs.ok, greedy.ok) == (True, False)
    assert greedy.difference == pytest.approx(0.5)


def test_a_token_that_is_less_likely_than_it_was_is_wrong():
    logprobs, greedy = judged([-0.1, -0.1], [(-0.1, -0.1), (-3.0, -3.0)])
    assert (logprobs.ok, greedy.ok) == (False, True)


@pytest.mark.parametrize(("own", "said"), [([], []), ([-1.0], []), ([-1.0], [(-1.0, -1.0)] * 2)])
def test_a_reference_that_judged_other_tokens_has_failed(own, said):
    (result,) = judged(own, said)
    assert not result.ok


def test_a_log_probability_that_is_no_number_has_failed():
    assert not all(r.ok for r in judged([math.nan], [(-1.0, -1.0)]))
    assert not all(r.ok for r in judged([-1.0, -1.0], [(-1.0, -1.0), (math.nan, math.nan)]))


def test_bounds_grow_with_what_a_dtype_rounds():
    assert bound_of("float32") < bound_of("float16") < bound_of("bfloat16") < bound_of("bfloat16", "fp8_e4m3")
    assert bound_of("float8_of_some_kind") == bound_of("bfloat16")
