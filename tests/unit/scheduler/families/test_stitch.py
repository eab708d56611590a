"""Stitched positions and slots, against an oracle that lays a tree out token by token."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkjoin_scheduler.dialects.dialect import Positions
from forkjoin_scheduler.dialects.limits import Limits
from forkjoin_scheduler.families.family import Branch, Family
from forkjoin_scheduler.families.fork import ForkPlan, ThreadPlan
from forkjoin_scheduler.families.stitch import (
    BlockSpan,
    joined_offset,
    lay_out,
    num_skipped,
    offset_runs,
    path_parts,
    slots,
    start_offsets,
    thread_offset,
)
from forkjoin_scheduler.families.thread_end import ThreadEnd


@dataclass
class Text:
    """``length`` tokens of its own, then forks: each its threads and how much follows their join.

    ``skipped``: of its own tokens, those that are left out of the joined context unless it is first.
    """

    length: int
    skipped: int = 0
    forks: list[tuple[list[Text], int]] = field(default_factory=list)


def _texts(depth: int, *, most_skipped: int = 4) -> st.SearchStrategy[Text]:
    lengths = st.integers(1, 5)
    forks: st.SearchStrategy[list[tuple[list[Text], int]]] = st.just([])
    if depth:
        threads = st.lists(_texts(depth - 1, most_skipped=most_skipped), min_size=1, max_size=3)
        forks = st.lists(st.tuples(threads, lengths), max_size=2)
    return lengths.flatmap(
        lambda n: st.builds(Text, st.just(n), st.integers(0, min(n - 1, most_skipped)), forks)
    )


# ---- the oracle ----------------------------------------------------------------------------


def _laid_out(text: Text, first: int, positions: Positions) -> list[int]:
    """The position of each token of ``text``, in the order of the joined context."""
    out = list(range(first, first + text.length))
    for threads, behind in text.forks:
        laid = [_laid_out(thread, out[-1] + positions.fork_gap, positions) for thread in threads]
        start = max(position for thread in laid for position in thread) + positions.join_gap
        out += laid[0]
        for thread, positioned in zip(threads[1:], laid[1:], strict=True):
            out += positioned[thread.skipped :]
        out += range(start, start + behind)
    return out


# ---- the same by offsets -------------------------------------------------------------------


def _thread(number: int, skipped: int) -> ThreadPlan:
    """A thread with a header of which the first ``skipped`` tokens do not stand in the joined context."""
    return ThreadPlan(str(number), "", (0,) * (skipped + 1), (0,))


def _by_offsets(family: Family, branch: Branch, text: Text, at: int, positions: Positions) -> list[int]:
    """The positions by slot and offset, ``at`` being the slot of the first token of ``text``."""
    out = [slot + branch.offset for slot in range(at, at + text.length)]
    for texts, behind in text.forks:
        fork_len = at + len(out)
        plan = ForkPlan(tuple(_thread(n, t.skipped) for n, t in enumerate(texts)), 0)
        threads = family.fork(branch, plan, fork_len, offset=thread_offset(branch.offset, positions))
        lengths = []
        for thread, inner in zip(threads, texts, strict=True):
            # Each runs right behind the fork, in slots of its own.
            laid = _by_offsets(family, thread, inner, fork_len, positions)
            family.end(thread, ThreadEnd.STOP)
            lengths.append(len(laid))
            out += laid[num_skipped(thread, is_first=thread is threads[0]) :]
        family.join(branch, [])
        branch.offset = joined_offset(threads, lengths, at + len(out), positions)
        first = at + len(out)
        out += [slot + branch.offset for slot in range(first, first + behind)]
    return out


@given(_texts(2), st.integers(0, 3), st.integers(0, 3), st.integers(0, 20))
def test_positions_by_offset_are_those_of_the_text_laid_out_token_by_token(text, fork_gap, join_gap, prompt):
    positions = Positions(fork_gap=fork_gap, join_gap=join_gap)
    family = Family("r", Limits())
    assert _by_offsets(family, family.root, text, prompt, positions) == _laid_out(text, prompt, positions)


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), max_size=4),
    st.integers(0, 8),
    st.integers(1, 9),
)
def test_what_a_nested_thread_starts_on_is_at_the_positions_of_those_above(levels, first, num_tokens):
    """``levels``: of each fork the tokens before it, and the gap behind it."""
    family = Family("r", Limits())
    branch, at, positions = family.root, 0, []
    for own, fork_gap in levels:
        positions += range(at + branch.offset, at + own + branch.offset)
        at += own
        offset = thread_offset(branch.offset, Positions(fork_gap=fork_gap))
        (branch,) = family.fork(branch, ForkPlan((_thread(1, 0),), 0), at, offset=offset)
    positions += range(at + branch.offset, first + num_tokens + branch.offset)
    runs = offset_runs(start_offsets(branch), first, num_tokens)
    offsets = [offset for num, offset in runs for _ in range(num)]
    expected = positions[first : first + num_tokens]
    assert [slot + offset for slot, offset in enumerate(offsets, first)] == expected


def test_behind_a_join_a_thread_starts_on_the_positions_behind_it():
    family = Family("r", Limits())
    (inner,) = family.fork(family.root, ForkPlan((_thread(1, 0),), 0), 10)
    family.end(inner, ThreadEnd.STOP)
    family.join(family.root, [])
    family.root.offset = -4
    (thread,) = family.fork(family.root, ForkPlan((_thread(1, 0),), 0), 20, offset=-4)
    assert start_offsets(thread) == ((0, -4),)


def test_a_thread_is_in_its_path_from_its_fork_on_and_its_parent_in_none():
    family = Family("r", Limits())
    plans = (replace(_thread(1, 0), path=0), replace(_thread(2, 0), path=2))
    without, within = family.fork(family.root, ForkPlan(plans, 0), 10)
    assert path_parts(family.root) == path_parts(without) == ((0, 0),)
    assert offset_runs(path_parts(within), 8, 5) == [(2, 0), (3, 2)]
    assert offset_runs(path_parts(within), 11, 2) == [(2, 2)]


def _two(offset: int = 0, *, skipped: int = 0) -> list[Branch]:
    family = Family("r", Limits())
    return family.fork(
        family.root, ForkPlan((_thread(1, skipped), _thread(2, skipped)), 0), 10, offset=offset
    )


def test_the_example_of_the_module():
    assert joined_offset(_two(thread_offset(0, Positions())), [4, 6], 20, Positions()) == -4


@pytest.mark.parametrize(
    ("fork_gap", "join_gap", "header_at", "behind_at"),
    [(1, 1, 10, 16), (1, 2, 10, 17), (2, 2, 11, 18), (0, 0, 9, 14)],
    ids=["training", "later", "both_later", "overlapping"],
)
def test_gaps_are_counted_from_the_trigger_and_from_the_furthest_thread(
    fork_gap, join_gap, header_at, behind_at
):
    """The trigger at 9, threads of 4 and 6 tokens: what follows stands in slot 20."""
    positions = Positions(fork_gap=fork_gap, join_gap=join_gap)
    threads = _two(thread_offset(0, positions))
    assert 10 + threads[0].offset == header_at
    assert 20 + joined_offset(threads, [4, 6], 20, positions) == behind_at


@pytest.mark.parametrize("skipped", [0, 1, 5])
def test_header_tokens_left_out_move_slots_and_no_positions(skipped):
    threads = _two(skipped=skipped)
    assert [num_skipped(t, is_first=t is threads[0]) for t in threads] == [0, skipped]
    joined_len = 10 + 4 + 6 - skipped
    assert joined_len + joined_offset(threads, [4, 6], joined_len, Positions()) == 16


def test_positions_may_run_before_slots_where_header_tokens_are_left_out():
    """One token of the second thread's six stands in the joined context, still at its position."""
    assert joined_offset(_two(skipped=5), [4, 6], 15, Positions()) == 1


@given(_texts(2, most_skipped=0))
def test_without_gaps_no_context_has_more_positions_than_slots(text):
    family = Family("r", Limits())
    laid = _by_offsets(family, family.root, text, 0, Positions())
    assert laid[-1] <= len(laid) - 1
    assert all(position <= slot for slot, position in enumerate(laid))


# ---- slots ---------------------------------------------------------------------------------


@given(st.integers(1, 8), st.permutations(range(12)), st.data())
def test_slots_are_those_of_the_blocks_laid_one_behind_the_other(block_size, block_ids, data):
    everything = [b * block_size + i for b in block_ids for i in range(block_size)]
    first = data.draw(st.integers(0, len(everything)))
    end = data.draw(st.integers(first, len(everything)))
    assert slots(block_ids, block_size, np.arange(first, end)).tolist() == everything[first:end]


def test_slots_beyond_the_blocks_are_an_error():
    with pytest.raises(IndexError):
        slots([3], 4, np.arange(5))


# ---- layouts -------------------------------------------------------------------------------


@st.composite
def lent_blocks(draw):
    """A block size, and blocks each with a part that holds KV."""
    size = draw(st.integers(1, 6))
    lent = []
    for block_id in draw(st.permutations(range(8)))[: draw(st.integers(0, 8))]:
        first = draw(st.integers(0, size - 1))
        lent.append(BlockSpan(block_id, first, draw(st.integers(first + 1, size)), draw(st.booleans())))
    return size, lent


def moved(size, lent, layout):
    """What each slot holds behind the moves: the name of the KV that was there, or of what came."""
    memory = {s: ("old", s) for s in range(9 * size)} | {
        b.block_id * size + i: ("kv", b.block_id, i) for b in lent for i in range(b.first, b.end)
    }
    num_more = 1 + len(lent) - len(layout.kept)  # blocks that are allocated behind the kept ones
    table = [*(lent[i].block_id for i in layout.kept), *range(9, 9 + num_more)]
    holes = slots(table, size, layout.holes).tolist()
    sources = layout.sources.tolist()
    assert len(sources) == len(holes) == len({*sources, *holes}) / 2
    return table, memory | {hole: memory[source] for source, hole in zip(sources, holes, strict=True)}


@given(lent_blocks())
def test_a_layout_has_all_that_was_lent_without_a_gap(case):
    size, lent = case
    table, memory = moved(size, lent, lay_out(lent, size))
    num_tokens = sum(b.end - b.first for b in lent)
    there = [memory[s] for s in slots(table, size, np.arange(num_tokens)).tolist()]
    assert sorted(there) == sorted(("kv", b.block_id, i) for b in lent for i in range(b.first, b.end))


@given(lent_blocks())
def test_a_layout_writes_no_block_that_somebody_else_has(case):
    size, lent = case
    before = {(b.block_id, i) for b in lent if not b.is_ours for i in range(size)}
    layout = lay_out(lent, size)
    kept = [lent[i].block_id for i in layout.kept]
    written = {(kept[h // size], h % size) for h in layout.holes.tolist() if h // size < len(kept)}
    assert not written & before


@given(lent_blocks())
def test_a_layout_takes_no_more_blocks_than_its_tokens_need(case):
    size, lent = case
    layout = lay_out(lent, size)
    num_blocks = -(-sum(b.end - b.first for b in lent) // size)
    assert len(set(layout.kept)) == len(layout.kept) <= num_blocks
    if all(b.is_ours for b in lent):
        assert len(layout.kept) == num_blocks


@given(lent_blocks(), st.booleans())
def test_what_begins_a_context_stays_first_in_its_order(case, is_ours):
    """An outer join may leave the first tokens out, by their number."""
    size, lent = case
    lent = [BlockSpan(8, 0, size - 1 or 1, is_ours), *lent]
    layout = lay_out(lent, size, keeps_first=True)
    table, memory = moved(size, lent, layout)
    num_tokens = sum(b.end - b.first for b in lent)
    there = [memory[s] for s in slots(table, size, np.arange(num_tokens)).tolist()]
    assert there[: lent[0].end] == [("kv", 8, i) for i in range(lent[0].end)]
    assert sorted(there) == sorted(("kv", b.block_id, i) for b in lent for i in range(b.first, b.end))


def test_whole_blocks_stay_and_the_fullest_are_filled_up():
    """Blocks of 4: 3 tokens fill up with the one of a block that is returned."""
    lent = [BlockSpan(5, 0, 3), BlockSpan(7, 0, 4), BlockSpan(6, 2, 3)]
    layout = lay_out(lent, 4)
    assert (layout.kept, layout.sources.tolist(), layout.holes.tolist()) == ([1, 0], [26], [7])


def test_a_block_that_is_lent_twice_stands_once_and_is_copied():
    """Two threads may have found the same one; it is nobody's own then."""
    lent = [
        BlockSpan(5, 0, 4, is_ours=False),
        BlockSpan(7, 0, 2),
        BlockSpan(5, 0, 4, is_ours=False, is_again=True),
    ]
    layout = lay_out(lent, 4)
    assert layout.kept == [0, 1]
    assert (layout.sources.tolist(), layout.holes.tolist()) == ([20, 21, 22, 23], [6, 7, 8, 9])
