from __future__ import annotations

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkjoin_scheduler.dialect import Limits
from forkjoin_scheduler.errors import IllegalTransition
from forkjoin_scheduler.family import Family, FamilyState, ThreadEnd
from forkjoin_scheduler.fork import ForkPlan, ThreadPlan


def _plan(width: int) -> ForkPlan:
    return ForkPlan(tuple(ThreadPlan(str(n), "", (0,), (0,)) for n in range(1, width + 1)), 0)


actions = st.lists(
    st.tuples(
        st.sampled_from(["fork", "generate", "end", "join", "finish"]), st.integers(1, 4), st.integers(0, 9)
    ),
    max_size=40,
)


@given(actions)
def test_any_sequence_keeps_the_tree_sound_and_an_illegal_step_changes_nothing(sequence):
    family = Family("r", Limits())
    for name, width, pick in sequence:
        before = copy.deepcopy(family)
        try:
            if name == "fork":
                family.fork(_plan(width))
            elif name == "generate" and family.current:
                family.thread_generated(family.current[pick % len(family.current)], [pick])
            elif name == "end" and family.current:
                family.end_thread(family.current[pick % len(family.current)], ThreadEnd.STOP)
            elif name == "join":
                family.join()
            elif name == "finish":
                family.finish()
        except IllegalTransition:
            assert family == before
        family.check_integrity()
        assert family.num_critical <= family.num_generated


def test_the_critical_path_takes_the_longest_thread_of_each_fork():
    family = Family("r", Limits())
    family.parent_generated(5)
    for lengths in ([3, 7], [2, 1]):
        threads = family.fork(_plan(2))
        for thread, length in zip(threads, lengths, strict=True):
            family.thread_generated(thread, list(range(length)))
            family.end_thread(thread, ThreadEnd.STOP)
        family.join()
    assert (family.num_generated, family.num_critical) == (5 + 10 + 3, 5 + 7 + 2)


def test_finishing_cancels_the_live_threads_only():
    family = Family("r", Limits())
    threads = family.fork(_plan(3))
    family.end_thread(threads[1], ThreadEnd.STOP)
    assert family.finish() == [threads[0], threads[2]]
    assert family.state is FamilyState.ENDED
    with pytest.raises(IllegalTransition):
        family.fork(_plan(1))
