"""What a stitched join asks of the workers in one step; it rides on vLLM's ``SchedulerOutput``.

They are an extra attribute of the output. vLLM hands the object itself to a worker in the same
process and pickles it, with its ``__dict__``, to those in others. It makes a copy without the
attribute in one place, n-gram speculation on a GPU (``ngram_gpu``), which is refused at start.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from vllm.v1.core.sched.output import SchedulerOutput

from forkjoin_scheduler.tensors.tokens import Int64s, Runs, of_tokens

ATTRIBUTE = "forkjoin"


def _no_copies() -> Int64s:
    return np.empty((0, 2), dtype=np.int64)


@dataclass(frozen=True, eq=False)
class WorkerStepMetadata:
    """The orders of one step; not to be changed once attached."""

    #: [n, 2]: source slot, destination slot. A slot is block id * block size + offset in the block,
    #: by the scheduler's blocks. No slot is both a source and a destination, none a destination twice.
    #: The sources' blocks must stay taken until this step is scheduled: vLLM clears blocks that are
    #: allocated in a step, and fills those that it copies, before the slots are copied.
    slot_copies: Int64s = field(default_factory=_no_copies)
    #: Request id -> of how many of its tokens computed in this step, in their order, what is added to their
    #: positions. Every position must stay in [0, max_model_len), but for drafts, which may be past its end.
    position_offsets: dict[str, Runs] = field(default_factory=dict)
    #: Request id -> of how many of its tokens, in the same order, the path whose embedding the model adds.
    paths: dict[str, Runs] = field(default_factory=dict)

    def token_offsets(self, request_ids: list[str], num_tokens: npt.NDArray[Any]) -> Int64s | None:
        """The offset of each token of a batch, or None if all are zero.

        Args:
            request_ids: the requests in the order of the batch.
            num_tokens: how many tokens of each are computed in this step.

        """
        return of_tokens(self.position_offsets, request_ids, num_tokens)

    def token_paths(self, request_ids: list[str], num_tokens: npt.NDArray[Any]) -> Int64s | None:
        """The path of each token of a batch, or None if all are of none."""
        return of_tokens(self.paths, request_ids, num_tokens)


NOTHING = WorkerStepMetadata()


def attach(scheduler_output: SchedulerOutput, metadata: WorkerStepMetadata) -> None:
    """Let ``orders`` be obeyed by the workers when they execute ``scheduler_output``."""
    setattr(scheduler_output, ATTRIBUTE, metadata)


def metadata_of(scheduler_output: SchedulerOutput) -> WorkerStepMetadata:
    """The metadata attached to ``scheduler_output``, empty if there are none."""
    attached: Mapping[str, WorkerStepMetadata] = vars(scheduler_output)
    return attached.get(ATTRIBUTE, NOTHING)
