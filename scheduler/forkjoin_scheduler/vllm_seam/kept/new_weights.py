"""What becomes of KV when the weights change: what old ones have computed is found by nobody any more.

Requests that have it go on with it, or have it computed again, or end: ``Settings.on_new_weights``.
"""

from __future__ import annotations

from collections.abc import Callable

from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.request import Request, RequestStatus

from forkjoin_scheduler.errors import UnsupportedEngine
from forkjoin_scheduler.publish.weights import Weights
from forkjoin_scheduler.vllm_seam import connectors
from forkjoin_scheduler.vllm_seam.cache import kv
from forkjoin_scheduler.vllm_seam.core import Core
from forkjoin_scheduler.vllm_seam.fence import Fence, drained, root_id
from forkjoin_scheduler.vllm_seam.kept.leasing import Leasing


class NewWeights:
    """Owns which requests go on with KV of earlier weights, and the ends of those that may not."""

    def __init__(self, core: Core, fence: Fence, leasing: Leasing) -> None:
        self._core, self._fence, self._leasing = core, fence, leasing
        #: The ids of requests, each for its family, since the weights changed last: some have ended.
        self._has_old_kv: set[str | None] = set()
        #: Requests that were ended here, of which the front end has yet to hear.
        self._aborted: list[Request] = []
        self._guards_hashing = False

    @property
    def weights(self) -> Weights:
        """Which ones the workers have."""
        return self._core.weights

    def check(self) -> None:
        """Raise UnsupportedEngine where KV of the old weights would be found after they have changed."""
        if tiers := connectors.tiers_of(self._core.scheduler.vllm_config):
            raise UnsupportedEngine(
                f"the weights can't change beside secondary_tiers of a KV connector (found {tiers}): files "
                "outlive the weights. Start a server with the new ones and another root_dir, or drop them"
            )

    def take(self) -> None:
        """The workers have other weights.

        Raises what vLLM raises, and RuntimeError if a KV connector keeps what old weights have computed; all
        else is done then.
        """
        core, scheduler = self._core, self._core.scheduler
        self._fence.fenced("keep", None, self._leasing.reset)
        kv.forget_hashes(core.kv_cache_manager)
        self._has_old_kv = self._found(self._holding)
        self._fence.fenced("weights", None, self._mark)
        self._guard_hashing()
        try:
            if core.settings.on_new_weights == "abort":
                self._end(self._found(self._begun))
            elif core.settings.on_new_weights == "recompute" or scheduler.connector is not None:
                self._compute_again()
        finally:  # when nobody has KV left that a connector would store once more
            is_reset = scheduler.reset_connector_cache()
        if not is_reset:
            raise RuntimeError("expected the KV connector to forget what it has stored, and it did not")

    def computed_again(self) -> None:
        """All requests have lost their KV, but for those that a load or a step in flight still writes."""
        self._has_old_kv = self._has_old_kv & self._holding()
        self._mark()

    def may_be_found(self, request: Request) -> bool:
        """Whether what ``request`` computes is what the present weights make of its tokens."""
        return root_id(request) not in self._has_old_kv

    # ---- who goes on, and how --------------------------------------------------------------

    def _compute_again(self) -> None:
        """Take all KV back. Who has some that can't be taken back, for it is being loaded, ends."""
        scheduler = self._core.scheduler
        try:
            scheduler.reset_prefix_cache(reset_running_requests=True)
        except RuntimeError:  # some blocks are not free; what they hold was forgotten before
            if not scheduler.deferred_frees and not self._has_old_kv:
                raise
        self._end(self._has_old_kv)

    def _end(self, families: set[str | None]) -> None:
        """Abort the requests with these ids."""
        for request in [r for r in self._core.requests.values() if r.request_id in families]:
            ended = self._core.scheduler.finish_requests(request.request_id, RequestStatus.FINISHED_ABORTED)
            self._aborted += [r for r in ended if r is request]  # of threads front ends know nothing

    def _begun(self) -> set[str | None]:
        """The ids of the requests that have KV, or have written something."""
        writing = {root_id(request) for request in self._core.requests.values() if request.num_output_tokens}
        return self._holding() | writing | {*self._core.live}

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

    def _found(self, find: Callable[[], set[str | None]]) -> set[str | None]:
        """What ``find`` finds; where that raises, all requests."""
        return self._fence.answer(
            "weights", None, lambda _: find(), {root_id(request) for request in self._core.requests.values()}
        )

    def _mark(self) -> None:
        for request_id, recording in self._core.recordings.items():
            recording.has_old_kv = request_id in self._has_old_kv

    def _guard_hashing(self) -> None:
        if self._has_old_kv and not self._guards_hashing:  # what no step need pay for before
            self._guards_hashing = True
            kv.guard_hashing(
                self._core.kv_cache_manager,
                lambda request: self._fence.answer("weights", request, self.may_be_found, False),
            )

    # ---- what is told ----------------------------------------------------------------------

    @property
    def has_aborted(self) -> bool:
        """Whether there is an end to emit."""
        return bool(self._aborted)

    def emit(self, result: dict[int, EngineCoreOutputs]) -> None:
        """Put the ends of those that were aborted into ``result``, behind what their families tell."""
        for request in drained(self._aborted):
            outputs = result.setdefault(request.client_index, EngineCoreOutputs()).outputs
            outputs.append(EngineCoreOutput(request.request_id, [], finish_reason=FinishReason.ABORT))
