"""KV that is not that of tokens in a row: which slots the workers move, which positions are off, and paths.

The orders of the step in which a request is scheduled next say what the workers move, for no gap to be
left in its KV.

Invariant (pinned by tests): blocks that are moved from stay held until the step that moves them is scheduled.
"""

from __future__ import annotations

import numpy as np
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.request import Request

from forkjoin_scheduler.families.family import Branch
from forkjoin_scheduler.families.stitch import Offsets, offset_runs, path_parts, start_offsets
from forkjoin_scheduler.tensors.tokens import Int64s, Runs
from forkjoin_scheduler.vllm_seam.cache import kv
from forkjoin_scheduler.vllm_seam.cache.worker_step_metadata import WorkerStepMetadata, attach
from forkjoin_scheduler.vllm_seam.core import Core
from forkjoin_scheduler.vllm_seam.fence import Fence


class Placing:
    """Owns what is put together when its request is scheduled next, positions off their slots, and paths."""

    def __init__(self, core: Core, fence: Fence) -> None:
        self._core = core
        self._fence = fence
        #: Requests whose context is put together when they are scheduled next.
        self.to_stitch: dict[str, kv.Stitched] = {}
        #: Requests whose KV is not that of their tokens in a row.
        self.unhashed: set[str] = set()
        #: Positions less slots, of the requests where they differ.
        self.offsets: dict[str, Offsets] = {}
        #: The path of each token, by parts as in offsets, of requests with tokens in a path.
        self.paths: dict[str, Offsets] = {}

    def never_hash(self, request: Request) -> None:
        """Keep the KV that ``request`` writes from now on out of the prefix cache."""
        self.unhashed.add(request.request_id)

    def may_be_hashed(self, request: Request) -> bool:
        """Whether the prefix cache may have what ``request`` writes."""
        return request.request_id not in self.unhashed

    def forget(self, request_id: str) -> None:
        """Keep nothing of a request that vLLM has forgotten."""
        self.unhashed.discard(request_id)

    def set_offsets(self, request: Request, offsets: Offsets) -> None:
        """Let the positions of ``request`` be ``offsets`` off its slots."""
        if any(offset for _, offset in offsets):
            self.offsets[request.request_id] = offsets

    def set_paths(self, request: Request, paths: Offsets) -> None:
        """Let the model add the embeddings of ``paths`` to the tokens of ``request``.

        The prefix cache knows a block by its tokens only: it must neither take nor give this KV.
        """
        if any(path for _, path in paths):
            self.paths[request.request_id] = paths
            self.never_hash(request)
            request.skip_reading_prefix_cache = True

    def ended(self, request_id: str) -> None:
        """Forget the positions and paths of a request that computes nothing more."""
        self.offsets.pop(request_id, None)
        self.paths.pop(request_id, None)

    def start_thread(self, request: Request, thread: Branch, parent: Request) -> None:
        """Positions, path and hashing of the request of a new thread in a stitched dialect."""
        self.set_offsets(request, start_offsets(thread))
        self.set_paths(request, path_parts(thread))
        if thread.offset or not self.may_be_hashed(parent):
            self.never_hash(request)

    def start_stitched(self, request: Request, stitched: kv.Stitched, offsets: Offsets) -> None:
        """Give ``request`` the KV that is put together when it is scheduled next."""
        kv.transfer_blocks(self._core.kv_cache_manager, request, stitched.held)
        self.never_hash(request)
        self.to_stitch[request.request_id] = stitched
        self.offsets[request.request_id] = offsets

    def unstitch(self, request_id: str) -> None:
        """Release what was to be put together for a request that will not run."""
        if stitched := self.to_stitch.pop(request_id, None):
            kv.release(self._core.kv_cache_manager, *stitched.rest)

    def attach_metadata(self, output: SchedulerOutput) -> None:
        """Tell the workers what to move in this step, whose positions are off their slots, and of paths."""
        scheduled = output.num_scheduled_tokens
        offsets, paths = self._runs(self.offsets, scheduled), self._runs(self.paths, scheduled)
        moves: list[Int64s] = []
        self._fence.each("stitch", [(i, moves) for i in self.to_stitch if i in scheduled], self._order_move)
        if moves or offsets or paths:
            copies = np.concatenate(moves) if moves else np.empty((0, 2), dtype=np.int64)
            attach(output, WorkerStepMetadata(copies, offsets, paths))

    def _runs(self, parts: dict[str, Offsets], scheduled: dict[str, int]) -> dict[str, Runs]:
        """Of the requests with ``parts``, those of the tokens that this step computes."""
        requests = self._core.requests
        return {
            i: offset_runs(parts[i], requests[i].num_computed_tokens - n, n)
            for i, n in scheduled.items()
            if i in parts
        }

    def _order_move(self, request_id: str, moves: list[Int64s]) -> None:
        stitched = self.to_stitch.pop(request_id)
        holes = kv.request_slots(self._core.kv_cache_manager, request_id, stitched.holes)
        moves.append(np.stack([stitched.sources, holes], axis=1))
        # Whoever gets these blocks gets them in a later step, and writes them after this one.
        kv.release(self._core.kv_cache_manager, *stitched.rest)
