"""The partly filled last block of a parked branch: its threads copy it, and then it is held in vain."""

from __future__ import annotations

from vllm.v1.request import RequestStatus

from forkjoin_scheduler.families.family import Branch, BranchState
from forkjoin_scheduler.families.stitch import num_inherited
from forkjoin_scheduler.vllm_seam.cache import kv
from forkjoin_scheduler.vllm_seam.core import Core
from forkjoin_scheduler.vllm_seam.live import LiveFamily
from forkjoin_scheduler.vllm_seam.starts import queues

#: Also one whose grammar is compiled first.
_NOT_STARTED = (RequestStatus.WAITING, RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR)


class Tails:
    """Lets go of such blocks. Owns the branches that still have theirs."""

    def __init__(self, core: Core) -> None:
        self._core = core
        #: Parked branches whose threads have not all got their copies of its partly filled last block.
        self.copied_from: list[tuple[LiveFamily, Branch]] = []

    def share(self, live: LiveFamily, branch: Branch) -> None:
        """``branch`` has forked: its threads are to get copies."""
        self.copied_from.append((live, branch))

    def drop(self, live: LiveFamily, branch: Branch) -> None:
        """Let go of what a parked branch holds in vain: it goes on with the first thread's copy of it.

        The copies are made in the step just scheduled: the block's next owner writes it in a later one.
        One thread that lost its copy, and one whose first thread lost it, compute these tokens again; where
        they can't, for threads were stitched in that block, the branch keeps it.
        """
        if branch.state is not BranchState.PARKED:
            return
        if any(self._has_not_started(thread) for thread in branch.waits_for):
            self.copied_from.append((live, branch))
        elif (request := self._core.request_of(branch)).num_computed_tokens:
            needed = max(map(num_inherited, branch.waits_for))
            queues.repark(
                self._core.scheduler,
                request,
                kv.drop_tail(self._core.kv_cache_manager, request, needed=needed),
            )

    def _has_not_started(self, thread: Branch) -> bool:
        request = self._core.requests.get(thread.request_id)
        return request is not None and request.status in _NOT_STARTED
