from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkjoin_scheduler.policy.deadlines import Deadlines


def test_the_next_token_is_due_a_target_behind_the_last_of_a_stream_just_met():
    assert Deadlines(2.0).slack({"a": 1}, now=10.0) == pytest.approx(2.0)
    assert Deadlines(2.0).slack({"a": 7}, now=10.0) == pytest.approx(2.0)


@pytest.mark.parametrize("written", [{}, {"a": 0}], ids=["no stream", "no token yet"])
def test_without_a_token_nothing_is_due(written):
    assert Deadlines(2.0).slack(written, now=0.0) is None


def test_the_stream_that_is_due_first_counts():
    deadlines = Deadlines(2.0)
    deadlines.slack({"a": 1}, now=0.0)
    assert deadlines.slack({"a": 1, "b": 1}, now=1.0) == pytest.approx(1.0)


def test_what_fast_steps_gain_slow_ones_may_spend():
    deadlines = Deadlines(2.0)
    for step in range(5):
        deadlines.slack({"a": step + 1}, now=0.5 * step)
    assert deadlines.slack({"a": 5}, now=2.0) == pytest.approx(8.0)
    assert deadlines.slack({"a": 5}, now=9.0) == pytest.approx(1.0)


def test_what_is_lost_is_forgotten_beyond_four_targets():
    deadlines = Deadlines(2.0)
    deadlines.slack({"a": 1}, now=0.0)
    assert deadlines.slack({"a": 1}, now=100.0) == pytest.approx(-8.0)
    assert deadlines.slack({"a": 2}, now=100.5) == pytest.approx(-6.5)


def test_a_stream_that_has_ended_and_comes_back_starts_anew():
    deadlines = Deadlines(2.0)
    deadlines.slack({"a": 1}, now=0.0)
    deadlines.slack({}, now=50.0)
    assert deadlines.slack({"a": 3}, now=100.0) == pytest.approx(2.0)


@given(st.lists(st.tuples(st.floats(0, 10), st.integers(0, 3)), min_size=1))
def test_no_stream_is_ever_later_than_four_targets(moves):
    deadlines, now, written = Deadlines(2.0), 0.0, 1
    for seconds, tokens in moves:
        now, written = now + seconds, written + tokens
        slack = deadlines.slack({"a": written}, now)
        assert slack is not None
        assert slack >= -8.0 - 1e-9


@given(st.integers(1, 200), st.floats(0.1, 2.0))
def test_a_stream_that_keeps_its_pace_is_never_late(num_steps, pace):
    deadlines = Deadlines(2.0)
    for step in range(num_steps):
        slack = deadlines.slack({"a": step + 1}, now=step * pace)
        assert slack is not None
        assert slack >= 2.0 - 1e-6
