from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkjoin_scheduler.dialect import Limits
from forkjoin_scheduler.errors import IllegalTransition
from forkjoin_scheduler.family import TRANSITIONS, Branch, BranchState, Family, Step, ThreadEnd
from forkjoin_scheduler.fork import ForkPlan, ThreadPlan


def _plan(width: int) -> ForkPlan:
    return ForkPlan(tuple(ThreadPlan(str(n), "", (0,), (0,)) for n in range(1, width + 1)), 0)


def _facts(family: Family) -> Any:
    """All that a family knows, comparable."""
    branches = [
        (
            b.request_id,
            b.state,
            b.end,
            list(b.token_ids),
            [[t.index for t in f] for f in b.forks],
            b.num_generated,
        )
        for b in family.root.subtree()
    ]
    return branches, [t.index for t in family.threads], family.num_forks, family.num_generated


actions = st.lists(
    st.tuples(
        st.sampled_from(["fork", "generate", "end", "join"]), st.integers(1, 3), st.integers(0, 30)
    ),
    max_size=60,
)  # fmt: skip


@given(actions)
def test_any_sequence_keeps_the_tree_sound_and_an_illegal_step_changes_nothing(sequence):
    family = Family("r", Limits())
    for name, width, pick in sequence:
        before = _facts(family)
        branch = [family.root, *family.threads][pick % (len(family.threads) + 1)]
        try:
            if name == "fork":
                family.fork(branch, _plan(width))
            elif name == "generate":
                family.generated(branch, [pick])
            elif name == "end":
                family.end(branch, ThreadEnd.STOP)
            else:
                family.join(branch, [7] * width)
        except IllegalTransition:
            assert _facts(family) == before
        family.check_integrity()
        assert family.root.num_critical <= family.num_generated
        assert family.num_generated == sum(b.num_generated for b in family.root.subtree())


def test_the_critical_path_takes_the_longest_thread_of_each_fork():
    family = Family("r", Limits())
    family.generated(family.root, [0] * 5)
    for lengths in ([3, 7], [2, 1]):
        threads = family.fork(family.root, _plan(2))
        for thread, length in zip(threads, lengths, strict=True):
            family.generated(thread, list(range(length)))
            family.end(thread, ThreadEnd.STOP)
        family.join(family.root, [])
    assert (family.num_generated, family.root.num_critical) == (5 + 10 + 3, 5 + 7 + 2)


def test_a_fork_inside_a_thread_counts_on_that_threads_path():
    family = Family("r", Limits())
    first, second = family.fork(family.root, _plan(2))
    family.generated(first, [1])
    for thread in family.fork(first, _plan(2)):
        family.generated(thread, [1, 2, 3])
        family.end(thread, ThreadEnd.STOP)
    family.join(first, [9, 9, 9])
    family.generated(first, [4])
    family.generated(second, [1, 2])
    assert (first.num_critical, family.root.num_critical, family.num_generated) == (5, 5, 10)
    assert first.token_ids == [1, 9, 9, 9, 4]
    assert [t.depth for t in family.threads] == [1, 1, 2, 2]


def test_ending_the_request_cancels_the_live_threads_only():
    family = Family("r", Limits())
    threads = family.fork(family.root, _plan(3))
    family.end(threads[1], ThreadEnd.STOP)
    inner = family.fork(threads[2], _plan(1))
    assert family.end(family.root, ThreadEnd.CANCELLED) == [threads[0], threads[2], *inner]
    assert [t.end for t in family.threads] == [
        ThreadEnd.CANCELLED, ThreadEnd.STOP, ThreadEnd.CANCELLED, ThreadEnd.CANCELLED,
    ]  # fmt: skip
    with pytest.raises(IllegalTransition):
        family.fork(family.root, _plan(1))


def _in_state(state: BranchState) -> tuple[Family, Branch]:
    """A family and its root in ``state``."""
    family = Family("r", Limits())
    if state in (BranchState.FORKED, BranchState.JOINABLE):
        thread = family.fork(family.root, _plan(1))[0]
        if state is BranchState.JOINABLE:
            family.end(thread, ThreadEnd.STOP)
    elif state is BranchState.ENDED:
        family.end(family.root, ThreadEnd.STOP)
    return family, family.root


@pytest.mark.parametrize("state", BranchState)
@pytest.mark.parametrize("step", [Step.FORK, Step.JOIN, Step.END])
def test_a_step_is_taken_exactly_where_the_table_allows_it(state, step):
    family, root = _in_state(state)
    before = _facts(family)
    take = {
        Step.FORK: lambda: family.fork(root, _plan(2)),
        Step.JOIN: lambda: family.join(root, []),
        Step.END: lambda: family.end(root, ThreadEnd.STOP),
    }[step]
    if after := TRANSITIONS.get((state, step)):
        take()
        assert root.state is after
    else:
        with pytest.raises(IllegalTransition, match=f"{step.name} in state {state.name}"):
            take()
        assert _facts(family) == before


@pytest.mark.parametrize("state", [BranchState.FORKED, BranchState.JOINABLE, BranchState.ENDED])
def test_only_a_branch_that_decodes_generates(state):
    family, root = _in_state(state)
    before = _facts(family)
    with pytest.raises(IllegalTransition, match=f"in state {state.name}"):
        family.generated(root, [1])
    assert _facts(family) == before


@given(
    st.lists(st.lists(st.sampled_from([*ThreadEnd]), min_size=1, max_size=4), min_size=1, max_size=4),
    st.data(),
)
def test_a_family_whose_threads_all_end_in_any_order_forks_again_with_dense_ids(forks, data):
    family = Family("r", Limits())
    for ends in forks:
        threads = family.fork(family.root, _plan(len(ends)))
        for i in data.draw(st.permutations(range(len(ends)))):
            assert family.has_forked
            family.end(threads[i], ends[i])
        family.join(family.root, [])
        family.check_integrity()
    ids = [t.request_id for t in family.threads]
    assert ids == [f"r#{i}" for i in range(sum(map(len, forks)))]
    assert (family.num_forks, family.root.state) == (len(forks), BranchState.DECODING)


@pytest.mark.parametrize(
    "breakage",
    [
        lambda f: setattr(f.root, "state", BranchState.DECODING),
        lambda f: f.threads.reverse(),
        lambda f: [setattr(t, "state", BranchState.ENDED) for t in f.threads],
    ],
    ids=["live_but_decoding", "order", "forked_without_live"],
)
def test_the_integrity_check_finds_a_broken_family(breakage):
    family = Family("r", Limits())
    family.fork(family.root, _plan(2))
    family.check_integrity()
    breakage(copy.copy(family))
    with pytest.raises(IllegalTransition):
        family.check_integrity()
