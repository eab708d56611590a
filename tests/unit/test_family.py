from __future__ import annotations

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkjoin_scheduler.dialect import Limits
from forkjoin_scheduler.errors import IllegalTransition
from forkjoin_scheduler.family import TRANSITIONS, Family, FamilyState, Step, ThreadEnd
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


def _in_state(state: FamilyState) -> Family:
    family = Family("r", Limits())
    if state in (FamilyState.FORKED, FamilyState.JOINABLE):
        thread = family.fork(_plan(1))[0]
        if state is FamilyState.JOINABLE:
            family.end_thread(thread, ThreadEnd.STOP)
    elif state is FamilyState.ENDED:
        family.finish()
    return family


@pytest.mark.parametrize("state", FamilyState)
@pytest.mark.parametrize("step", [Step.FORK, Step.JOIN, Step.END])
def test_a_step_is_taken_exactly_where_the_table_allows_it(state, step):
    family = _in_state(state)
    before = copy.deepcopy(family)
    take = {Step.FORK: lambda: family.fork(_plan(2)), Step.JOIN: family.join, Step.END: family.finish}[step]
    if after := TRANSITIONS.get((state, step)):
        take()
        assert family.state is after
    else:
        with pytest.raises(IllegalTransition, match=f"{step.name} in state {state.name}"):
            take()
        assert family == before


@pytest.mark.parametrize("state", [FamilyState.JOINABLE, FamilyState.ENDED, FamilyState.DECODING])
def test_an_ended_thread_neither_generates_nor_ends_again(state):
    family = _in_state(FamilyState.JOINABLE)
    thread = family.threads[0]
    if state is not FamilyState.JOINABLE:
        family.join() if state is FamilyState.DECODING else family.finish()
    before = copy.deepcopy(family)
    with pytest.raises(IllegalTransition, match="generated"):
        family.thread_generated(thread, [1])
    with pytest.raises(IllegalTransition, match="twice"):
        family.end_thread(thread, ThreadEnd.EOS)
    assert family == before


@given(
    st.lists(st.lists(st.sampled_from([*ThreadEnd]), min_size=1, max_size=4), min_size=1, max_size=4),
    st.data(),
)
def test_a_family_whose_threads_all_end_in_any_order_forks_again_with_dense_ids(forks, data):
    family = Family("r", Limits())
    for ends in forks:
        threads = family.fork(_plan(len(ends)))
        for i in data.draw(st.permutations(range(len(ends)))):
            assert family.state is FamilyState.FORKED
            family.end_thread(threads[i], ends[i])
        family.join()
        family.check_integrity()
    ids = [family.thread_id(t) for t in family.threads]
    assert ids == [f"r#{i}" for i in range(sum(map(len, forks)))]
    assert (family.num_forks, family.state) == (len(forks), FamilyState.DECODING)


def test_an_aborted_fork_counts_its_longest_thread_on_the_critical_path():
    family = Family("r", Limits())
    first, second = family.fork(_plan(2))
    family.thread_generated(first, [1, 2, 3])
    family.thread_generated(second, [1])
    family.finish()
    assert (family.num_generated, family.num_critical) == (4, 3)


@pytest.mark.parametrize(
    "breakage",
    [
        lambda f: setattr(f, "state", FamilyState.DECODING),
        lambda f: f.threads.reverse(),
        lambda f: [setattr(t, "end", ThreadEnd.STOP) for t in f.threads],
    ],
    ids=["live_but_decoding", "order", "forked_without_live"],
)
def test_the_integrity_check_finds_a_broken_family(breakage):
    family = Family("r", Limits())
    family.fork(_plan(2))
    breakage(family)
    with pytest.raises(IllegalTransition):
        family.check_integrity()
