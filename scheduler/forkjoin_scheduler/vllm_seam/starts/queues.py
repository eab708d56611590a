"""Every touch of vLLM's scheduler queues: park a branch that has forked, resume it, requeue it.

vLLM has two: ``waiting``, and ``kv_holding_waiting``, which it drains first and, paused for new
requests, alone. The second holds here all that has begun, whether it has blocks at the moment or has
lost them: what runs is finished before more is started.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from vllm.v1.core.sched.request_queue import RequestQueue, SchedulingPolicy
from vllm.v1.request import Request, RequestStatus

from forkjoin_scheduler.vllm_seam.cache import kv
from forkjoin_scheduler.vllm_seam.starts import connector
from forkjoin_scheduler.vllm_seam.starts.requests import forget_in_flight
from forkjoin_scheduler.vllm_seam.view import SchedulerView

#: Whether it holds no blocks, its priority, its arrival, its id.
_Rank = tuple[bool, int, float, int, str]


class BegunQueue(RequestQueue):
    """Waiting requests that have begun: those that hold blocks first, then the most urgent, then the oldest.

    One whose allocation fails ends vLLM's scan: after it must be none that could run on blocks it has.
    """

    def __init__(self, policy: SchedulingPolicy) -> None:
        self._by_priority = policy == SchedulingPolicy.PRIORITY
        self._ranked: list[tuple[_Rank, Request]] = []

    def _entry(self, request: Request) -> tuple[_Rank, Request]:
        priority = request.priority if self._by_priority else 0
        request_id = request.request_id
        # Its length puts the threads of a family in their order: #2 before #10.
        rank = request.num_computed_tokens == 0, priority, request.arrival_time, len(request_id), request_id
        return rank, request

    def add_request(self, request: Request) -> None:
        """Let ``request`` wait in its turn."""
        insort(self._ranked, self._entry(request))

    def prepend_request(self, request: Request) -> None:
        """The same: its rank says when it is its turn."""
        self.add_request(request)

    def prepend_requests(self, requests: Iterable[Request]) -> None:
        """The same for several at once."""
        self._ranked += map(self._entry, requests)
        self._ranked.sort()

    def peek_request(self) -> Request:
        """The first. Raises IndexError if there is none."""
        return self._ranked[0][1]

    def pop_request(self) -> Request:
        """Take the first out. Raises IndexError if there is none."""
        return self._ranked.pop(0)[1]

    def remove_request(self, request: Request) -> None:
        """Take ``request`` out. Raises ValueError if it does not wait here."""
        left = [entry for entry in self._ranked if entry[1] is not request]
        if len(left) == len(self._ranked):
            raise ValueError(f"{request.request_id} does not wait here")
        self._ranked = left

    def remove_requests(self, requests: Iterable[Request]) -> None:
        """Take those of ``requests`` out that wait here."""
        removed = set(requests)
        self._ranked = [entry for entry in self._ranked if entry[1] not in removed]

    def __bool__(self) -> bool:
        return bool(self._ranked)

    def __len__(self) -> int:
        return len(self._ranked)

    def __iter__(self) -> Iterator[Request]:
        return (request for _, request in self._ranked)


def park(scheduler: SchedulerView, request: Request) -> None:
    """Take ``request`` out of the running; it keeps its blocks and waits, natively skipped."""
    if request.status == RequestStatus.RUNNING:
        scheduler.running.remove(request)
    else:
        dequeue(scheduler, request)
    scheduler._inflight_prefills.discard(request)
    _enqueue_parked(scheduler, request)
    # The V2 runner frees its slot; it is added again at the join.
    scheduler.reset_preempted_req_ids.add(request.request_id)


def suspend(scheduler: SchedulerView, request: Request) -> None:
    """Let a waiting ``request``, which holds no blocks, wait on until its KV is recomputed."""
    dequeue(scheduler, request)
    _enqueue_parked(scheduler, request)


def _enqueue_parked(scheduler: SchedulerView, request: Request) -> None:
    """A parked request has no sample in flight: it would end a request that vLLM counts as parked.

    It goes back to the tokens whose KV is, or is being, written. In async scheduling the step in flight
    writes the KV of the token sampled last, so that counts.
    """
    forget_in_flight(request)
    request.num_computed_tokens = kv.keep(scheduler.kv_cache_manager, request, request.num_tokens)
    kv.cache_state(scheduler.kv_cache_manager, request)
    connector.forget_blocks(scheduler, request)
    request.status = RequestStatus.WAITING_FOR_STREAMING_REQ
    scheduler.num_waiting_for_streaming_input += 1
    scheduler._enqueue_waiting_request(request)


def num_parked(scheduler: SchedulerView) -> int:
    """How many requests wait parked: not sessions of vLLM's, which wait for input and keep their slots."""
    waiting = scheduler.kv_holding_waiting if scheduler.num_waiting_for_streaming_input else ()
    return sum(r.status == RequestStatus.WAITING_FOR_STREAMING_REQ and not r.resumable for r in waiting)


def resume(scheduler: SchedulerView, request: Request, num_computed_tokens: int) -> None:
    """Let a parked ``request`` run again, ``num_computed_tokens`` of whose tokens have KV."""
    _unpark(scheduler, request, num_computed_tokens, RequestStatus.WAITING)


def regain(
    scheduler: SchedulerView, request: Request, num_computed_tokens: int, status: RequestStatus
) -> None:
    """Let a suspended ``request`` run again, as what it was: new to the workers, or preempted."""
    _unpark(scheduler, request, num_computed_tokens, status)


def _unpark(
    scheduler: SchedulerView, request: Request, num_computed_tokens: int, status: RequestStatus
) -> None:
    scheduler.num_waiting_for_streaming_input -= 1
    request.spec_token_ids = []  # drafts of what it wrote last may have come after its parking
    request.num_computed_tokens = num_computed_tokens
    request.status = status
    requeue(scheduler, request)


def repark(scheduler: SchedulerView, request: Request, num_computed_tokens: int) -> None:
    """A waiting ``request`` has lost its blocks (0), or has them again.

    vLLM keeps blocks back for what computes its prompt or has loaded it: not for what has lost all of that.
    """
    scheduler._inflight_prefills.discard(request)
    request.num_computed_tokens = num_computed_tokens
    requeue(scheduler, request)


def requeue(scheduler: SchedulerView, request: Request) -> None:
    """A waiting ``request`` waits where it belongs: vLLM puts what it preempts before all that is new."""
    dequeue(scheduler, request)
    scheduler._enqueue_waiting_request(request)


def start(scheduler: SchedulerView, request: Request) -> None:
    """Queue a new request of a family, before all that have not begun."""
    connector.announce(scheduler, request)
    scheduler.requests[request.request_id] = request
    scheduler.kv_holding_waiting.add_request(request)


def dequeue(scheduler: SchedulerView, request: Request) -> None:
    """Take ``request`` out of whichever queue it waits in."""
    try:
        scheduler.kv_holding_waiting.remove_request(request)
    except ValueError:
        scheduler.waiting.remove_request(request)
    scheduler.deferred_waiting.discard(request)


def take_out(scheduler: SchedulerView, is_taken: Callable[[Request], bool]) -> list[Request]:
    """Take all requests that ``is_taken`` names out of all queues, whatever state they are in.

    Returns those that are still known.
    """
    queues = (scheduler.running, scheduler.waiting, scheduler.kv_holding_waiting)
    everywhere = [*scheduler.requests.values(), *(r for queue in queues for r in queue)]
    taken = {r for r in everywhere if is_taken(r)}
    scheduler.running = [r for r in scheduler.running if r not in taken]
    scheduler.waiting.remove_requests(taken)
    scheduler.kv_holding_waiting.remove_requests(taken)
    scheduler.deferred_waiting.difference_update(taken)
    waiting = (*scheduler.waiting, *scheduler.kv_holding_waiting)
    scheduler.num_waiting_for_streaming_input = sum(
        r.status == RequestStatus.WAITING_FOR_STREAMING_REQ for r in waiting
    )
    return [r for r in scheduler.requests.values() if r in taken]


def misplaced(scheduler: SchedulerView) -> str | None:
    """What is wrong with the queues; None if each request stands in one, and in the right one."""
    running = Counter(r.request_id for r in scheduler.running)
    waiting = Counter(r.request_id for q in (scheduler.waiting, scheduler.kv_holding_waiting) for r in q)
    for request_id, request in scheduler.requests.items():
        runs = request.status == RequestStatus.RUNNING
        if not request.is_finished() and (running.pop(request_id, 0), waiting.pop(request_id, 0)) != (
            runs,
            not runs,
        ):
            return f"{request_id}, which is {request.status.name}, not in one queue, or in the wrong one"
    strangers = [*running, *waiting]
    return f"{strangers[0]} in a queue, and no such request" if strangers else None
