"""vLLM's scheduler as the parts of fork/join see it: facts that they read, and what they may ask of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any, Protocol

from vllm.config import VllmConfig
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.sched.request_queue import RequestQueue, SchedulingPolicy
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.request import Request, RequestStatus


class SchedulerView(Protocol):
    """What of it is touched; all of it in ``queues.py`` and ``fence.py`` but for facts, and the last five."""

    vllm_config: VllmConfig
    requests: dict[str, Request]
    running: list[Request]
    waiting: RequestQueue
    kv_holding_waiting: RequestQueue
    deferred_waiting: set[Request]
    #: Parked and suspended requests: they wait in a queue, and for nothing that a step could give.
    num_waiting_for_streaming_input: int
    #: Of requests that the V2 runner forgets and then adds again.
    reset_preempted_req_ids: set[str]
    kv_cache_manager: KVCacheManager
    kv_cache_config: KVCacheConfig
    connector: Any
    #: Requests whose load has ended.
    finished_recving_kv_req_ids: set[str]
    #: Blocks that return to the pool once the step with a number has ended.
    deferred_frees: deque[Any]
    #: Steps begun and ended, counted where loads may overtake steps in flight; else 0.
    sched_step_seq: int
    processed_step_seq: int
    policy: SchedulingPolicy
    current_step: int
    max_model_len: int
    hash_block_size: int
    max_num_active_reqs: int
    max_num_scheduled_tokens: int
    num_spec_tokens: int
    num_lookahead_tokens: int
    _spec_decode_step_blocks: int
    _inflight_prefills: set[Request]

    def _enqueue_waiting_request(self, request: Request) -> None:
        """Let ``request`` wait in the queue that is right for it."""

    def _free_request(self, request: Request, delay_free_blocks: bool = False) -> Any:
        """Forget ``request``, which has ended, and return its blocks."""

    def finish_requests(
        self, request_ids: str | Iterable[str] | None, finished_status: RequestStatus
    ) -> list[Request]:
        """End these, with the families that they are of; those that had not ended."""

    def reset_prefix_cache(self, reset_running_requests: bool = False, reset_connector: bool = False) -> bool:
        """Forget cached KV, and that of what runs if it is to be computed again."""

    def reset_connector_cache(self) -> bool:
        """Let the KV connector, if there is one, forget what it has."""

    # ---- vLLM's own, past what we put around them ------------------------------------------

    def end_requests(self, request_ids: Iterable[str], status: RequestStatus) -> None:
        """End these, and no other: not the families that they are of."""

    def preempt(self, request: Request) -> None:
        """Take the blocks of a ``request`` that runs; the samples in flight for it are dropped."""
