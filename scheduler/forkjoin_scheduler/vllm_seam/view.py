"""What the scheduler's collaborators may ask of it: facts that they read, and for some, what threads do.

A collaborator is held by ``ForkJoinScheduler``, keeps state of its own, and is told this view when it is
made. What it keeps of families, the fence has to know (``Fence._collaborators``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TypeVar

from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.sched.request_queue import RequestQueue, SchedulingPolicy
from vllm.v1.request import Request

from forkjoin_scheduler.bound import BoundDialect
from forkjoin_scheduler.errors import EnginePlace
from forkjoin_scheduler.family import Branch, ThreadEnd
from forkjoin_scheduler.settings import Settings
from forkjoin_scheduler.vllm_seam import kv
from forkjoin_scheduler.vllm_seam.live import LiveFamily
from forkjoin_scheduler.vllm_seam.tokenizer import EngineTokenizer

if TYPE_CHECKING:
    from forkjoin_scheduler.vllm_seam.jobs import Job

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class SchedulerView(Protocol):
    """A scheduler as its collaborators see it."""

    # ---- vLLM's ----------------------------------------------------------------------------

    requests: dict[str, Request]
    running: list[Request]
    waiting: RequestQueue
    kv_holding_waiting: RequestQueue
    #: Parked and suspended requests: they wait in a queue, and for nothing that a step could give.
    num_waiting_for_streaming_input: int
    kv_cache_manager: KVCacheManager
    policy: SchedulingPolicy
    current_step: int
    max_num_scheduled_tokens: int
    num_spec_tokens: int
    num_lookahead_tokens: int

    # ---- ours (see ``Core``) ---------------------------------------------------------------

    _settings: Settings
    _engine: int
    _spoken: BoundDialect | None
    _tokenizer: EngineTokenizer
    _num_slots: int
    _live: dict[str, LiveFamily]
    _threads: dict[str, tuple[LiveFamily, Branch]]
    _fills: dict[str, Job]
    _to_stitch: dict[str, kv.Stitched]

    def _turn(self, request: Request) -> tuple[int, float]:
        """Whose turn it is to run: the smaller, the sooner."""

    # ---- the fence -------------------------------------------------------------------------

    def _contain(self, where: EnginePlace, error: Exception, of: object) -> None:
        """The family of ``of`` failed (None: it was nobody's error)."""

    def _answer(
        self, where: EnginePlace, of: Item, ask: Callable[[Item], Answer], otherwise: Answer
    ) -> Answer:
        """What ``ask`` answers of ``of`` in the middle of vLLM's work; ``otherwise`` where that raises."""


class ThreadControl(SchedulerView, Protocol):
    """The same, for those who also start threads and end them."""

    def _request_of(self, branch: Branch | None) -> Request:
        """The request of a branch that has not ended."""

    def _start_thread(self, live: LiveFamily, thread: Branch, parent: Request) -> None:
        """Queue a request for ``thread``, on the KV of ``parent``."""

    def _stop(self, live: LiveFamily, thread: Branch, end: ThreadEnd) -> None:
        """End ``thread``, which decodes or waits to, where it is; what it wrote is joined."""

    def _cancel(self, live: LiveFamily, thread: Branch, end: ThreadEnd) -> None:
        """End ``thread`` in this way, and all beneath it; it has no part in the join."""
