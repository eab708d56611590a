"""The arithmetic of stitched joins: where threads' KV goes, and at which positions it goes on.

Contexts lie in KV slots without a gap. Positions are those the model was trained with: each thread's
go on from the fork, what follows the join goes on from the longest thread. So a branch's positions
differ from its slots by an ``offset``, constant between two joins::

    slots      0 .. 9 | 10 11 12 13 | 14 15 16 17 18 19 | 20 21
    text       prompt | thread 1    | thread 2          | what follows
    positions  0 .. 9 | 10 11 12 13 | 10 11 12 13 14 15 | 16 17        offset 16 - 20 = -4

In which order the threads' KV lies after the fork is all the same: positions are in the keys, and
what follows sees all of it. What is before the fork stays where it is, for an outer join may leave
some of it out. So a join takes the threads' blocks as they are, and moves only what fills
the gaps in them: it needs no block beyond those that the threads have, but for one that two of them share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from forkjoin_scheduler.dialects.dialect import Positions
    from forkjoin_scheduler.families.family import Branch

Slots = npt.NDArray[np.int64]

#: Positions less slots of a context, by parts: the first slot of each part (the first is 0), and its offset.
Offsets = tuple[tuple[int, int], ...]


def thread_offset(parent_offset: int, positions: Positions) -> int:
    """The offset of a thread whose parent has ``parent_offset`` at the fork."""
    return parent_offset + positions.fork_gap - 1


def joined_offset(
    threads: Sequence[Branch], lengths: Sequence[int], joined_len: int, positions: Positions
) -> int:
    """The offset after a join of ``threads``.

    ``lengths``: tokens that each has behind the fork in its own context, ``joined_len``: those of
    the joined context.
    """
    if positions.join_from == "last":
        return threads[0].offset - positions.fork_gap + positions.join_gap
    last = max(t.fork_len + n - 1 + t.offset for t, n in zip(threads, lengths, strict=True))
    return last + positions.join_gap - joined_len


def start_offsets(branch: Branch) -> Offsets:
    """The offsets of ``branch`` up to its first join, its parent's context among them.

    Of what was joined in that context only the offset after it is known: nobody computes threads in a row.
    The parent must still wait for it.
    """
    parent = branch.parent
    if parent is None:
        return ((0, branch.start_offset),)
    before = ((0, parent.offset),) if parent.joined_forks else start_offsets(parent)
    if before[-1][1] == branch.start_offset:
        return before
    return (*(part for part in before if part[0] < branch.fork_len), (branch.fork_len, branch.start_offset))


def offset_runs(offsets: Offsets, first: int, num_tokens: int) -> list[tuple[int, int]]:
    """How many tokens have which offset, of ``num_tokens`` from slot ``first`` on, in their order.

    >>> offset_runs(((0, 0), (10, 2)), 8, 5)
    [(2, 0), (3, 2)]
    """
    ends = [start for start, _ in offsets[1:]] + [first + num_tokens]
    runs, at = [], first
    for (_, offset), end in zip(offsets, ends, strict=True):
        num = min(end, first + num_tokens) - at
        if num > 0:
            runs.append((num, offset))
            at += num
    return runs


def path_parts(branch: Branch) -> Offsets:
    """Which path's embedding the tokens of ``branch`` have, by parts as offsets: none (0) up to its fork."""
    path = 0 if branch.plan is None else branch.plan.path
    return ((0, 0), (branch.fork_len, path)) if path else ((0, 0),)


def num_inherited(thread: Branch) -> int:
    """How many tokens of its parent's context a thread has to take the KV of, for it can't compute them.

    Those up to the end of the parent's last stitched join. The parent must still wait for it.
    """
    if thread.parent is None:
        return 0
    return thread.parent.stitched_len or num_inherited(thread.parent)


def num_skipped(thread: Branch, *, is_first: bool) -> int:
    """How many tokens of a thread's header are left out of the joined context, the first's standing there."""
    assert thread.plan is not None
    return 0 if is_first else len(thread.plan.header_ids) - len(thread.plan.joined_header_ids)


def slots(block_ids: Sequence[int], block_size: int, tokens: Slots) -> Slots:
    """The KV slots of ``tokens`` (counted from 0) of a request with these blocks.

    >>> slots([7, 3], 4, np.arange(2, 6)).tolist()
    [30, 31, 12, 13]
    """
    return np.asarray(block_ids, dtype=np.int64)[tokens // block_size] * block_size + tokens % block_size


@dataclass(frozen=True)
class BlockSpan:
    """A block whose slots ``first`` to ``end`` (exclusive) hold KV of a context that is put together.

    ``is_ours``: whether the other slots may be written. ``is_again``: whether the context has that block
    already; it stands there once, so its KV is copied for the second time.
    """

    block_id: int
    first: int
    end: int
    is_ours: bool = True
    is_again: bool = False


@dataclass(frozen=True)
class Layout:
    """How lent blocks become a context without a gap.

    ``kept``: the blocks that it takes, in order, as indices of the lent ones. ``sources``: slots in
    others, or after its end. ``holes``: where these go, counted in tokens from its first block on; it
    may take blocks beyond the kept ones.
    """

    kept: list[int]
    sources: Slots
    holes: Slots


def lay_out(spans: Sequence[BlockSpan], block_size: int, *, keeps_first: bool = False) -> Layout:
    """The layout with the fewest blocks, and of these one with few moves.

    ``keeps_first``: the KV of the first lent block, which begins it, stays first and in its order. If
    that block is not ours, all is moved, to new blocks.
    """
    lengths = [b.end - b.first for b in spans]
    num_tokens = sum(lengths)
    num_blocks = -(-num_tokens // block_size)
    kept = [0] if keeps_first else []
    free = [i for i, b in enumerate(spans) if not b.is_again and i not in kept]
    kept += [i for i in free if lengths[i] == block_size]
    parts = [i for i in free if spans[i].is_ours and lengths[i] < block_size]
    kept += sorted(parts, key=lambda i: -lengths[i])[: num_blocks - len(kept)]
    if keeps_first and not spans[0].is_ours:
        kept = []
    is_taken = np.zeros(num_blocks * block_size, dtype=bool)
    for at, i in enumerate(kept):
        is_taken[at * block_size + spans[i].first : at * block_size + spans[i].end] = True
    behind = num_tokens + np.flatnonzero(is_taken[num_tokens:])
    sources = [slots([spans[i].block_id for i in kept], block_size, behind)]
    sources += [
        b.block_id * block_size + np.arange(b.first, b.end) for i, b in enumerate(spans) if i not in kept
    ]
    return Layout(kept, np.concatenate(sources), np.flatnonzero(~is_taken[:num_tokens]))
