"""The two passes as graphs of whole steps read them, with FlashAttention 3's schedules of both."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from forkjoin_scheduler.tensors.fixed_passes import FixedPasses
from forkjoin_scheduler.tensors.two_passes import TwoPasses
from forkjoin_scheduler.vllm_seam.grouped.step import Step


@dataclass(frozen=True)
class Scheduled:
    """The two passes, with what FlashAttention 3 wants to know of each before it runs."""

    passes: TwoPasses
    shared: torch.Tensor | None
    own: torch.Tensor | None


class GraphPasses:
    """Of one builder of metadata: owns the buffers that its layers read in graphs."""

    def __init__(
        self, step: Step, max_rows: int, max_blocks: int, max_length: int, device: torch.device
    ) -> None:
        """``step``: of the runner; the others as in ``FixedPasses``."""
        self.step = step
        self._passes = FixedPasses(max_rows, max_blocks, max_length, device)
        # As vLLM's own (FlashAttentionMetadataBuilder): a counter, and four numbers for each of so many runs,
        # rounded up to a multiple of four.
        size = 1 + -(-max_rows // 4) * 16
        self._shared, self._own = (torch.zeros(size, dtype=torch.int32, device=device) for _ in range(2))

    @property
    def buffers(self) -> tuple[torch.Tensor, ...]:
        """All memory that graphs read, beside vLLM's."""
        return *self._passes.buffers, self._shared, self._own

    def refill(self, passes: TwoPasses) -> TwoPasses:
        """Take over ``passes``, of padded groups; returns the same in the buffers."""
        self._passes.refill(passes)
        own = passes.own
        return self._passes.of(len(own.lengths), own.max_queries, own.starts)

    def keep(self, scheduled: Scheduled) -> Scheduled:
        """``scheduled`` with its schedules in the buffers."""
        return replace(
            scheduled, shared=_kept(self._shared, scheduled.shared), own=_kept(self._own, scheduled.own)
        )


def _kept(buffer: torch.Tensor, schedule: torch.Tensor | None) -> torch.Tensor | None:
    if schedule is None:
        return None
    num = len(schedule)
    buffer[:num] = schedule
    buffer[num:] = 0  # as vLLM does: a kernel of another size may not find an old schedule there
    return buffer[:num]
