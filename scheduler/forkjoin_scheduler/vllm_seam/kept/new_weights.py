"""What becomes of KV when the weights change: what old ones have computed is found by nobody any more.

Requests that have it go on with it, or have it computed again, or end: ``Settings.on_new_weights``.
"""

from __future__ import annotations

from vllm.v1.request import Request, RequestStatus

from forkjoin_scheduler.vllm_seam.cache import kv
from forkjoin_scheduler.vllm_seam.core import Core
from forkjoin_scheduler.vllm_seam.fence import Fence, root_id
from forkjoin_scheduler.vllm_seam.kept.leasing import Leasing


class NewWeights:
    """Owns which requests go on with KV of earlier weights."""

    def __init__(self, core: Core, fence: Fence, leasing: Leasing) -> None:
        self._core, self._fence, self._leasing = core, fence, leasing
        #: The ids of requests, each for its family, since the weights changed last: some have ended.
        self._has_old_kv: set[str | None] = set()
        self._guards_hashing = False

    def take(self, version: str | None) -> list[Request]:
        """The workers have other weights, of this ``version`` (None: nobody said). Returns who is aborted."""
        core, scheduler, aborted = self._core, self._core.scheduler, list[Request]()
        core.weights.version = version or core.weights.version
        match core.settings.on_new_weights:
            case "abort":
                aborted = scheduler.finish_requests(self._begun(), RequestStatus.FINISHED_ABORTED)
            case "recompute":
                scheduler.reset_prefix_cache(reset_running_requests=True)
        scheduler.reset_connector_cache()
        self._fence.fenced("weights", None, self._forget_old_kv)
        return aborted

    def may_be_found(self, request: Request) -> bool:
        """Whether what ``request`` computes is what the present weights make of its tokens."""
        return root_id(request) not in self._has_old_kv

    def _begun(self) -> list[str]:
        """The ids of the requests that have KV, or have written something."""
        requests = self._core.requests.values()
        begun = self._holding() | {root_id(request) for request in requests if request.num_output_tokens}
        return [request.request_id for request in requests if root_id(request) in begun]

    def _forget_old_kv(self) -> None:
        """Let the prefix cache find nothing that there is, and no request find what an answer has kept."""
        self._leasing.reset()
        kv.forget_hashes(self._core.kv_cache_manager)
        self._has_old_kv = self._holding()
        self._mark()
        if self._has_old_kv and not self._guards_hashing:  # what no step need pay for before
            self._guards_hashing = True
            kv.guard_hashing(
                self._core.kv_cache_manager,
                lambda request: self._fence.answer("weights", request, self.may_be_found, False),
            )

    def computed_again(self) -> None:
        """All requests have lost their KV."""
        self._has_old_kv = set()
        self._mark()

    def _mark(self) -> None:
        for request_id, recording in self._core.recordings.items():
            recording.has_old_kv = request_id in self._has_old_kv

    def _holding(self) -> set[str | None]:
        """The ids of the requests whose families hold blocks."""
        manager, core = self._core.kv_cache_manager, self._core
        holding = {root_id(r) for r in core.requests.values() if kv.has_blocks(manager, r)}
        lives = core.live.values()
        return holding | {
            live.family.request_id
            for live in lives
            if live.held or any(job.unclaimed_blocks for job in live.jobs)
        }
