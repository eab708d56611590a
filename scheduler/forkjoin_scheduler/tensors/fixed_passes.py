"""The two passes in memory that stays where it is, for CUDA graphs: a graph reads what its buffers say.

A graph repeats kernels with the addresses and the numbers that they had when it was captured. So the passes
of a graph have as many groups as its rows can form, and lengths bounded by the longest context:

    rows of a graph    [ group 0 | group 1 | rows in no group, padding ]
    shared pass        a run of queries for each group, one without keys for the other rows, then empty runs
    own pass           a run for each row, as in any step

Rows without keys get zeros and a log-sum-exp of -inf from the shared pass, which leaves their own result.

Invariants (pinned by tests): tensors of ``of`` lie in the buffers, and its numbers depend on the graph's size
alone; columns of the block tables after a row's last block are left as they were and never read.
"""

from __future__ import annotations

import torch

from forkjoin_scheduler.tensors.two_passes import Pass, TwoPasses, max_groups


class FixedPasses:
    """Owns the buffers. All graphs share them, for one runs at a time."""

    def __init__(self, max_rows: int, max_blocks: int, max_length: int, device: torch.device) -> None:
        """``max_rows`` of a graph, ``max_blocks`` of a row's block table, ``max_length``: tokens of a row."""

        def zeros(*shape: int) -> torch.Tensor:
            return torch.zeros(*shape, dtype=torch.int32, device=device)

        num_groups, self._max_length = max_groups(max_rows), max_length
        self._starts, self._lengths = zeros(num_groups + 1), zeros(num_groups)
        self._table = zeros(num_groups, max_blocks)
        self._own_lengths, self._own_table = zeros(max_rows), zeros(max_rows, max_blocks)

    @property
    def buffers(self) -> tuple[torch.Tensor, ...]:
        """All memory that graphs read."""
        return self._starts, self._lengths, self._table, self._own_lengths, self._own_table

    def of(self, num_rows: int, num_queries: int, row_starts: torch.Tensor) -> TwoPasses:
        """The passes of a graph of ``num_rows`` rows with ``num_queries`` each.

        ``row_starts`` [rows + 1]: where each row's queries begin and end, in memory that stays, too.
        """
        num, total = max_groups(num_rows), num_rows * num_queries
        shared = Pass(
            self._starts[: num + 1], total, self._lengths[:num], self._max_length, self._table[:num]
        )
        own = Pass(
            row_starts,
            num_queries,
            self._own_lengths[:num_rows],
            self._max_length,
            self._own_table[:num_rows],
        )
        return TwoPasses(total, shared, own)

    def refill(self, passes: TwoPasses) -> None:
        """Take over the passes of a step with padded groups; queued on the current stream."""
        shared, own = passes.shared, passes.own
        self._starts[: len(shared.starts)] = shared.starts
        self._lengths[: len(shared.lengths)] = shared.lengths
        self._own_lengths[: len(own.lengths)] = own.lengths
        for buffer, table in ((self._table, shared.block_table), (self._own_table, own.block_table)):
            buffer[: table.shape[0], : table.shape[1]] = table
