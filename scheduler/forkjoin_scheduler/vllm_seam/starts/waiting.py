"""What waits to run, and for what; when a client hears of it, ``waits.py`` says."""

from __future__ import annotations

from collections.abc import Iterable

from vllm.v1.request import Request, RequestStatus

from forkjoin_scheduler.families.family import Branch, BranchState
from forkjoin_scheduler.families.waits import Wait
from forkjoin_scheduler.publish.events import Waiting
from forkjoin_scheduler.vllm_seam.cache.kv_jobs import KVJobs
from forkjoin_scheduler.vllm_seam.core import Core
from forkjoin_scheduler.vllm_seam.live import LiveFamily
from forkjoin_scheduler.vllm_seam.starts.connector import is_loading

_WAITS = (
    RequestStatus.WAITING,
    RequestStatus.PREEMPTED,
    RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR,
)


def could_run(request: Request) -> bool:
    """Whether ``request`` runs or waits to; what is parked does neither."""
    return request.status == RequestStatus.RUNNING or request.status in _WAITS


class Waiters:
    """Counts what waits, and says for what. Owns ``held_back``: which threads wait for their turn."""

    def __init__(self, core: Core, jobs: KVJobs) -> None:
        self._core, self._jobs = core, jobs
        #: Threads that the policy does not let run in this step (``thread_pacer.py``).
        self.held_back: set[str] = set()
        #: The adapters of what runs, by the step and how many run: asked for each waiting request.
        self._adapters: tuple[tuple[int, int], set[int]] = ((-1, 0), set())

    def hold_back(self, request: Request) -> None:
        """Let a thread sit the next step out."""
        self.held_back.add(request.request_id)
        if request.status == RequestStatus.RUNNING:
            # vLLM's own means for microbatches: not eligible before the step after the next.
            request.next_decode_eligible_step = self._core.scheduler.current_step + 2

    def has_room_for_adapter(self, request: Request) -> bool:
        """Whether the adapter of ``request`` fits beside those of all that runs.

        vLLM counts the adapters of what a step computes, without threads that sit it out. In the step in
        which these run again, there would be more than ``max_loras``, which ends the engine.
        """
        lora_config = self._core.scheduler.vllm_config.lora_config
        if lora_config is None or request.lora_request is None or not self.held_back:
            return True
        adapters = self._running_adapters()
        is_new = request.lora_request.lora_int_id not in adapters
        return len(adapters) + is_new <= lora_config.max_loras

    def _running_adapters(self) -> set[int]:
        scheduler = self._core.scheduler
        known_for = (scheduler.current_step, len(scheduler.running))
        if self._adapters[0] != known_for:
            adapters = {r.lora_request.lora_int_id for r in scheduler.running if r.lora_request}
            self._adapters = (known_for, adapters)
        return self._adapters[1]

    def let_all_run(self) -> None:
        """Hold no thread back any more."""
        self.held_back = set()

    def num(self) -> int:
        """How many wait to run; parked branches do not."""
        scheduler = self._core.scheduler
        num_parked = scheduler.num_waiting_for_streaming_input
        return len(scheduler.waiting) + len(scheduler.kv_holding_waiting) - num_parked

    def num_of(self, request_ids: Iterable[str]) -> int:
        """How many of these wait to run."""
        requests = self._core.requests
        return sum(requests[i].status in _WAITS or is_loading(requests[i]) for i in request_ids)

    def count(self) -> tuple[int, int]:
        """How many threads and how many requests wait to run; fills are neither."""
        if not (num := self.num()):
            return 0, 0
        num_threads = self.num_of(self._core.threads)
        return num_threads, num - num_threads - self.num_of(self._jobs.prefills)

    def wait_of(self, thread: Branch) -> Wait | None:
        """What ``thread``, which decodes or is to, waits for in this step; None if it runs."""
        request = self._core.requests.get(thread.request_id)
        if request is None:
            # it has not been started
            return "dependencies" if thread.parent is not None and thread.parent.planned else "wave"
        if thread.request_id in self.held_back:
            return "turn"
        if request.status == RequestStatus.RUNNING:
            return None
        is_compiled = request.status != RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR
        return "room" if is_compiled else "grammar"

    def emit(self, live: LiveFamily) -> None:
        """Emit, for a client that listens, which threads wait in this step or no longer do."""
        assert live.waits is not None
        for thread in live.family.threads:
            if thread.end is None and thread.state is BranchState.DECODING:
                wait = self.wait_of(thread)
                if live.waits.see(thread.index, wait, has_begun=thread.num_generated > 0):
                    live.emit(Waiting(index=thread.index, waits_for=wait))
