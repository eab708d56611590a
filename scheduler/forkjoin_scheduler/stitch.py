"""The arithmetic of stitched joins: where a thread's KV goes, and at which positions it goes on.

Contexts lie in KV slots without a gap, one thread behind the other. Positions are those the model
was trained with: each thread's go on from the fork, what follows the join goes on from the
longest thread. So a branch's positions differ from its slots by an ``offset``, constant between
two joins::

    slots      0 .. 9 | 10 11 12 13 | 14 15 16 17 18 19 | 20 21
    text       prompt | thread 1    | thread 2          | what follows
    positions  0 .. 9 | 10 11 12 13 | 10 11 12 13 14 15 | 16 17        offset 16 - 20 = -4
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from forkjoin_scheduler.dialect import Positions
from forkjoin_scheduler.family import Branch

Slots = npt.NDArray[np.int64]


def thread_offset(parent_offset: int, positions: Positions) -> int:
    """The offset of a thread whose parent has ``parent_offset`` at the fork."""
    return parent_offset + positions.fork_gap - 1


def joined_offset(
    threads: Sequence[Branch], lengths: Sequence[int], joined_len: int, positions: Positions
) -> int:
    """The offset behind a join of ``threads``.

    ``lengths``: tokens that each has behind the fork in its own context, ``joined_len``: those of
    the joined context.
    """
    last = max(t.fork_len + n - 1 + t.offset for t, n in zip(threads, lengths, strict=True))
    return last + positions.join_gap - joined_len


def num_skipped(thread: Branch, *, is_first: bool) -> int:
    """How many tokens of a thread's header are left out of the joined context, the first's standing there."""
    assert thread.plan is not None
    return 0 if is_first else len(thread.plan.header_ids) - len(thread.plan.joined_header_ids)


def slots(block_ids: Sequence[int], block_size: int, first: int, end: int) -> Slots:
    """The KV slots of the tokens ``first`` to ``end`` (exclusive) of a request with these blocks.

    >>> slots([7, 3], 4, 2, 6).tolist()
    [30, 31, 12, 13]
    """
    tokens = np.arange(first, end, dtype=np.int64)
    return np.asarray(block_ids, dtype=np.int64)[tokens // block_size] * block_size + tokens % block_size
