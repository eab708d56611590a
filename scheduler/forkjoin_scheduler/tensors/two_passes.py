"""Attention in two passes: KV that a group of rows shares once, each row's own KV, and a merge.

    one pass       row 0 [s s s s a a]   row 1 [s s s s b]   row 2 [c c c]
    shared pass    rows 0 and 1 [s s s s], read once
    own pass       row 0 [a a]           row 1 [b]           row 2 [c c c]

The rows of groups stand first in the batch, group by group, each with as many new tokens: one, or one and
drafts. The shared pass has no causal mask: all new tokens come after all shared ones. Both passes are one
function of paged KV. Each softmax is over part of the keys, so its result is weighted by its log-sum-exp.

Invariants (pinned by tests): the result is that of one pass, but for rounding; no row of a pass has no keys.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch


@dataclass(frozen=True)
class StepGroups:
    """The groups of a step: of the first rows of its batch, how many each has, and the tokens they share.

    ``kv_cache_group``: in whose blocks, by vLLM's number. The tokens are a multiple of its block size, and
    each row had computed them before this step.
    """

    kv_cache_group: int
    num_rows: tuple[int, ...]
    num_tokens: tuple[int, ...]
    #: New tokens of each of these rows.
    num_queries: int = 1

    @classmethod
    def none(cls, num_queries: int = 1) -> StepGroups:
        """Of a step whose rows share nothing."""
        return cls(0, (), (), num_queries)

    @property
    def total_rows(self) -> int:
        """Rows in groups."""
        return sum(self.num_rows)

    @property
    def saved_tokens(self) -> int:
        """Tokens of KV that are not read again, in each layer."""
        return sum((rows - 1) * tokens for rows, tokens in zip(self.num_rows, self.num_tokens, strict=True))

    def padded(self, total_rows: int) -> StepGroups:
        """As many groups for any batch of ``total_rows``, all of whose rows are in one.

        The rows in no group become one that shares nothing; after it groups without rows follow.
        """
        rest = total_rows - self.total_rows
        num_empty = max_groups(total_rows) - len(self.num_rows) - 1
        if rest < 0 or num_empty < 0:
            raise ValueError(f"expected groups of two rows or more among {total_rows}, got {self.num_rows}")
        none = (0,) * num_empty
        return replace(self, num_rows=(*self.num_rows, rest, *none), num_tokens=(*self.num_tokens, 0, *none))


def max_groups(total_rows: int) -> int:
    """Groups of a padded step with ``total_rows``: each has two rows or more, and one is of the rest."""
    return total_rows // 2 + 1


@dataclass(frozen=True)
class HostPlan:
    """What of the two passes is known without the device, for a batch of ``num_rows``."""

    groups: StepGroups
    #: One array, so that it is one copy: where groups' queries begin and end [groups + 1], the tokens that
    #: they share [groups], their first rows [groups], and the tokens that each row shares [num_rows].
    numbers: npt.NDArray[np.int32]
    max_own: int

    @classmethod
    def of(cls, groups: StepGroups, longest: npt.NDArray[np.integer]) -> HostPlan:
        """``longest``: how many tokens each row of the batch has at most, this step's included."""
        sizes, tokens = np.array(groups.num_rows, np.int32), np.array(groups.num_tokens, np.int32)
        ends = np.cumsum(sizes, dtype=np.int32)
        shared = np.zeros(len(longest), np.int32)
        shared[: groups.total_rows] = np.repeat(tokens, sizes)
        first = np.minimum(ends - sizes, len(longest) - 1)  # of groups without rows: any row
        numbers = np.concatenate([[0], ends * groups.num_queries, tokens, first, shared]).astype(np.int32)
        return cls(groups, numbers, int((longest - shared).max()))


@dataclass(frozen=True)
class Pass:
    """Arguments of one pass: queries of runs from ``starts``, keys by lengths and block table."""

    starts: torch.Tensor
    max_queries: int
    lengths: torch.Tensor
    max_length: int
    block_table: torch.Tensor


@dataclass(frozen=True)
class TwoPasses:
    """``shared`` is over the first ``num_grouped`` new tokens of the batch, ``own`` over all."""

    num_grouped: int
    shared: Pass
    own: Pass


def split(
    plan: HostPlan,
    numbers: torch.Tensor,
    starts: torch.Tensor,
    max_query: int,
    lengths: torch.Tensor,
    block_table: torch.Tensor,
    block_size: int,
) -> TwoPasses:
    """The two passes of a batch; queued on the current stream, without waiting for it.

    Args:
        plan: of this batch.
        numbers: ``plan.numbers`` on the device.
        starts: where each row's queries begin and end [rows + 1].
        max_query: the most queries of a row.
        lengths: the keys of each row [rows].
        block_table: the blocks of each row [rows, blocks].
        block_size: tokens in a block of ``block_table``.

    """
    num, num_rows = len(plan.groups.num_rows), len(lengths)
    group_starts, tokens, first, shared = numbers.split([num + 1, num, num, num_rows])
    max_shared, num_queries = max(plan.groups.num_tokens), plan.groups.num_queries
    width = -(-plan.max_own // block_size)
    columns = torch.arange(width, device=block_table.device) + (shared // block_size)[:, None]
    own_table = block_table.gather(1, columns.clamp_(max=block_table.shape[1] - 1))
    shared_table = block_table[: plan.groups.total_rows, : max_shared // block_size].index_select(0, first)
    return TwoPasses(
        plan.groups.total_rows * num_queries,
        Pass(group_starts, max(plan.groups.num_rows) * num_queries, tokens, max_shared, shared_table),
        Pass(starts, max_query, lengths - shared, plan.max_own, own_table),
    )
