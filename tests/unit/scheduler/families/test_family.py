from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkjoin_scheduler.dialects.limits import Limits
from forkjoin_scheduler.errors import IllegalTransition
from forkjoin_scheduler.families.family import TRANSITIONS, Branch, BranchState, Family, Transition
from forkjoin_scheduler.families.fork import ForkPlan, ThreadPlan
from forkjoin_scheduler.families.thread_end import ThreadEnd


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
            [t.index for t in b.waits_for],
            b.num_generated,
            b.num_critical,
        )
        for b in family.root.subtree()
    ]
    counts = family.num_forks, family.num_live, family.num_generated, family.num_shown
    return branches, [t.index for t in family.threads], counts


def _do(family: Family, name: str, branch: Branch, size: int) -> None:
    """One step of a life, of ``branch``."""
    if name == "fork":
        family.fork(branch, _plan(size))
    elif name == "fork_beside":
        family.fork(branch, _plan(size), waits=False)
    elif name == "wait":
        family.wait(branch, branch.threads[:size])
    elif name == "generate":
        family.generated(branch, [7] * size)
    elif name == "join":
        family.join(branch, [7] * size)
    else:
        family.end(branch, ThreadEnd.STOP)


def _bounds_hold(family: Family) -> None:
    assert family.num_generated == sum(b.num_generated for b in family.root.subtree())
    assert max(b.num_generated for b in family.root.subtree()) <= family.num_critical
    assert family.num_critical <= family.num_generated
    for branch in family.root.subtree():
        assert branch.num_generated <= branch.num_critical <= family.num_generated


NAMES = ["fork", "fork_beside", "wait", "generate", "join", "end"]
actions = st.lists(st.tuples(st.sampled_from(NAMES), st.integers(1, 3), st.integers(0, 30)), max_size=60)


@given(actions)
def test_any_sequence_keeps_the_tree_sound_and_an_illegal_step_changes_nothing(sequence):
    family = Family("r", Limits())
    for name, size, pick in sequence:
        before = _facts(family)
        branch = [family.root, *family.threads][pick % (len(family.threads) + 1)]
        try:
            _do(family, name, branch, size)
        except IllegalTransition:
            assert _facts(family) == before
        family.check_integrity()
        _bounds_hold(family)
        assert family.num_live == sum(b.is_live for b in (family.root, *family.threads))
        assert family.has_live_threads == any(t.is_live for t in family.threads)


@given(actions)
def test_the_critical_path_is_the_longest_in_the_graph_of_tokens(sequence):
    """The oracle: each token a node, behind the last of its branch or those of the threads joined."""
    family = Family("r", Limits())
    depths: list[int] = []
    behind: dict[Branch, list[int]] = {family.root: []}
    for name, size, pick in sequence:
        branch = [family.root, *family.threads][pick % (len(family.threads) + 1)]
        try:
            _do(family, name, branch, size)
        except IllegalTransition:
            continue
        if name in ("fork", "fork_beside"):
            behind |= dict.fromkeys(branch.threads, behind[branch])
        elif name == "join":
            behind[branch] = [n for b in (branch, *branch.waits_for) for n in behind[b]]
        elif name == "generate":
            for _ in range(size):
                depths.append(1 + max((depths[n] for n in behind[branch]), default=0))
                behind[branch] = [len(depths) - 1]
    assert family.num_critical == max(depths, default=0)


@given(actions, st.data())
def test_any_family_can_be_brought_to_its_end_branch_by_branch(sequence, data):
    family = Family("r", Limits())
    for name, size, pick in sequence:
        branch = [family.root, *family.threads][pick % (len(family.threads) + 1)]
        with suppress(IllegalTransition):
            _do(family, name, branch, size)
    while live := [b for b in family.root.subtree() if b.is_live and not any(t.is_live for t in b.waits_for)]:
        family.end(data.draw(st.sampled_from(live)), ThreadEnd.STOP, cancels=False)
        family.check_integrity()
    assert (family.is_live, family.num_live, family.has_live_threads) == (False, 0, False)


@given(actions)
def test_ending_the_request_leaves_nothing_alive_whatever_went_on(sequence):
    family = Family("r", Limits())
    for name, size, pick in sequence:
        branch = [family.root, *family.threads][pick % (len(family.threads) + 1)]
        with suppress(IllegalTransition):
            _do(family, name, branch, size)
    live = [b for b in family.root.subtree() if b.is_live]
    if family.root.is_live:
        assert family.end(family.root, ThreadEnd.CANCELLED) == live[1:]
        assert not family.is_live
        family.check_integrity()


def test_a_fork_that_does_not_wait_leaves_its_branch_decoding():
    family = Family("r", Limits())
    family.generated(family.root, [0] * 4)
    first, second = family.fork(family.root, _plan(2), waits=False)
    family.generated(family.root, [0] * 3)
    family.generated(first, [1] * 5)
    assert (family.root.state, family.root.waits_for) == (BranchState.DECODING, [])
    assert (family.root.num_critical, first.num_critical, second.num_critical) == (7, 9, 4)
    assert (family.num_critical, family.num_generated, family.num_live) == (9, 12, 3)


def test_threads_go_on_behind_the_end_of_a_request_that_did_not_wait():
    family = Family("r", Limits())
    threads = family.fork(family.root, _plan(2), waits=False)
    assert family.end(family.root, ThreadEnd.STOP, cancels=False) == []
    assert (family.is_live, family.has_live_threads, family.num_live) == (True, True, 2)
    for thread in threads:
        family.generated(thread, [1])
        family.end(thread, ThreadEnd.STOP)
    family.check_integrity()
    assert not family.is_live


def test_a_branch_waits_for_the_threads_that_it_asks_for_and_no_others():
    family = Family("r", Limits())
    first, second = family.fork(family.root, _plan(2), waits=False)
    family.generated(second, [2] * 6)
    family.wait(family.root, [first])
    family.end(second, ThreadEnd.STOP)
    assert family.root.state is BranchState.PARKED
    family.generated(first, [1] * 3)
    family.end(first, ThreadEnd.STOP)
    assert family.root.state is BranchState.JOINABLE
    family.join(family.root, [9])
    assert (family.root.num_critical, family.num_critical) == (3, 6)


def test_waiting_for_a_thread_that_has_ended_takes_no_time():
    family = Family("r", Limits())
    first, _ = family.fork(family.root, _plan(2), waits=False)
    family.end(first, ThreadEnd.STOP)
    family.wait(family.root, [first])
    assert family.root.state is BranchState.JOINABLE
    family.check_integrity()


def test_threads_know_where_they_forked_and_at_which_offset():
    family = Family("r", Limits())
    threads = family.fork(family.root, _plan(2), 11, offset=-3)
    assert [(t.fork_len, t.offset, t.start_offset, t.sibling_index) for t in threads] == [
        (11, -3, -3, 0),
        (11, -3, -3, 1),
    ]
    family.generated(threads[0], [5, 6])
    assert (threads[0].token_ids, family.root.token_ids) == ([5, 6], [])


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


def test_what_a_branch_wrote_behind_its_fork_in_the_same_step_is_not_on_its_threads_path():
    family = Family("r", Limits())
    family.generated(family.root, [0] * 5)
    (thread,) = family.fork(family.root, _plan(1), 3, waits=False, num_behind=2)
    family.generated(thread, [1])
    assert (thread.num_critical, family.root.num_critical, family.num_critical) == (4, 5, 5)


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
    assert (first.num_critical, family.num_critical, family.num_generated) == (5, 5, 10)
    assert first.token_ids == [1, 9, 9, 9, 4]
    assert [t.depth for t in family.threads] == [1, 1, 2, 2]


def test_what_a_thread_takes_back_is_no_part_of_its_text_but_stays_counted():
    family = Family("r", Limits())
    (thread,) = family.fork(family.root, _plan(1))
    family.generated(thread, [1, 2, 3, 4])
    thread.take_back(3, [7, 8])
    family.root.take_back(1, [9])  # whose tokens vLLM keeps
    assert (thread.token_ids, family.root.token_ids) == ([1, 7, 8], [])
    assert (thread.num_generated, family.num_generated) == (4, 4)


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
    if state in (BranchState.PARKED, BranchState.JOINABLE):
        thread = family.fork(family.root, _plan(1))[0]
        if state is BranchState.JOINABLE:
            family.end(thread, ThreadEnd.STOP)
    elif state is BranchState.ENDED:
        family.end(family.root, ThreadEnd.STOP)
    return family, family.root


@pytest.mark.parametrize("state", BranchState)
@pytest.mark.parametrize("step", [Transition.PARK, Transition.JOIN, Transition.END])
def test_a_step_is_taken_exactly_where_the_table_allows_it(state, step):
    family, root = _in_state(state)
    before = _facts(family)
    take = {
        Transition.PARK: lambda: family.fork(root, _plan(2)),
        Transition.JOIN: lambda: family.join(root, []),
        Transition.END: lambda: family.end(root, ThreadEnd.STOP),
    }[step]
    if after := TRANSITIONS.get((state, step)):
        take()
        assert root.state is after
    else:
        with pytest.raises(IllegalTransition, match=f"{step.name} in state {state.name}"):
            take()
        assert _facts(family) == before


@pytest.mark.parametrize("state", [BranchState.PARKED, BranchState.JOINABLE, BranchState.ENDED])
@pytest.mark.parametrize(
    "step",
    [
        lambda family: family.generated(family.root, [1]),
        lambda family: family.fork(family.root, _plan(1), waits=False),
        lambda family: family.wait(family.root, family.root.threads),
    ],
    ids=["generates", "forks_without_waiting", "waits"],
)
def test_only_a_branch_that_decodes_does_anything(state, step):
    family, _ = _in_state(state)
    before = _facts(family)
    with pytest.raises(IllegalTransition, match=f"in state {state.name}"):
        step(family)
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
            assert family.root.waits_for == threads
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
        lambda f: setattr(f, "num_live", 2),
        lambda f: setattr(f.root, "state", BranchState.ENDED),
    ],
    ids=["live_but_decoding", "order", "parked_without_live", "count", "ended_before_its_threads"],
)
def test_the_integrity_check_finds_a_broken_family(breakage):
    family = Family("r", Limits())
    family.fork(family.root, _plan(2))
    family.check_integrity()
    breakage(family)
    with pytest.raises(IllegalTransition):
        family.check_integrity()


def test_a_parked_branch_that_ends_without_cancelling_waits_for_its_threads_no_more():
    family = Family("r", Limits())
    family.fork(family.root, _plan(1))
    family.end(family.root, ThreadEnd.STOP, cancels=False)
    family.check_integrity()
    assert (family.num_live, family.has_live_threads, family.root.waits_for) == (1, True, [])
    family.end(family.threads[0], ThreadEnd.STOP)
    family.check_integrity()
    assert not family.is_live


def test_a_family_counts_its_threads_that_have_ended():
    family = Family("r", Limits())
    family.generated(family.root, [7] * 5)
    first, second = family.fork(family.root, _plan(2))
    assert family.num_ended_threads == 0
    family.end(first, ThreadEnd.STOP)
    assert family.num_ended_threads == 1
    family.end(second, ThreadEnd.STOP)
    family.join(family.root, [7])
    assert family.num_ended_threads == 2
    family.end(family.root, ThreadEnd.STOP)
    assert family.num_ended_threads == 2
