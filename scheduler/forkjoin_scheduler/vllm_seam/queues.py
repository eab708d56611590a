"""Every touch of vLLM's scheduler queues: park a branch that has forked, resume it, requeue it."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable
from typing import Any

from vllm.v1.request import Request, RequestStatus

from forkjoin_scheduler.vllm_seam.requests import forget_in_flight

#: Set on a suspended request: the status that it waited with.
_RESUMES_AS = "_forkjoin_resumes_as"


def park(scheduler: Any, request: Request) -> None:
    """Take ``request`` out of the running; it keeps its blocks and waits, natively skipped."""
    if request.status == RequestStatus.RUNNING:
        scheduler.running.remove(request)
    else:
        dequeue(scheduler, request)
    forget_in_flight(request)
    scheduler._inflight_prefills.discard(request)
    _enqueue_parked(scheduler, request)
    # The V2 runner frees its slot; it is added anew at the join.
    scheduler.reset_preempted_req_ids.add(request.request_id)


def suspend(scheduler: Any, request: Request) -> None:
    """Let a waiting ``request``, which holds no blocks, wait on until its KV is computed anew."""
    dequeue(scheduler, request)
    setattr(request, _RESUMES_AS, request.status)
    _enqueue_parked(scheduler, request)


def _enqueue_parked(scheduler: Any, request: Request) -> None:
    request.status = RequestStatus.WAITING_FOR_STREAMING_REQ
    scheduler.num_waiting_for_streaming_input += 1
    scheduler._enqueue_waiting_request(request)


def resume(scheduler: Any, request: Request, num_computed_tokens: int) -> None:
    """Let a parked ``request`` run again, ``num_computed_tokens`` of whose tokens have KV."""
    _unpark(scheduler, request, num_computed_tokens, RequestStatus.WAITING)


def regain(scheduler: Any, request: Request, num_computed_tokens: int) -> None:
    """Let a suspended ``request`` run again, as what it was: new to the workers, or preempted."""
    _unpark(scheduler, request, num_computed_tokens, getattr(request, _RESUMES_AS))


def _unpark(scheduler: Any, request: Request, num_computed_tokens: int, status: RequestStatus) -> None:
    dequeue(scheduler, request)
    scheduler.num_waiting_for_streaming_input -= 1
    request.num_computed_tokens = num_computed_tokens
    request.status = status
    if num_computed_tokens:
        scheduler._enqueue_waiting_request(request)
    else:  # before those that have not started, as vLLM does with what it has preempted
        scheduler.waiting.prepend_request(request)


def repark(scheduler: Any, request: Request, num_computed_tokens: int) -> None:
    """A parked ``request`` has lost its blocks (0), or has them again: it waits where such wait."""
    dequeue(scheduler, request)
    request.num_computed_tokens = num_computed_tokens
    scheduler._enqueue_waiting_request(request)


def start(scheduler: Any, request: Request, *, first: bool = True) -> None:
    """Queue a new request, ``first``: before all that wait to start, to finish what runs."""
    scheduler.requests[request.request_id] = request
    queue = scheduler.kv_holding_waiting if first else scheduler.waiting
    queue.add_request(request)


def dequeue(scheduler: Any, request: Request) -> None:
    """Take ``request`` out of whichever queue it waits in."""
    for queue in (scheduler.kv_holding_waiting, scheduler.waiting):
        with contextlib.suppress(ValueError):  # it is in the other
            queue.remove_request(request)
    scheduler.deferred_waiting.discard(request)


def take_out(scheduler: Any, is_taken: Callable[[Request], bool]) -> list[Request]:
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


def misplaced(scheduler: Any) -> str | None:
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
