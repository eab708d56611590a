"""Every touch of vLLM's scheduler queues: park a branch that has forked, resume it, requeue it."""

from __future__ import annotations

from typing import Any

from vllm.v1.request import Request, RequestStatus

from forkjoin_scheduler.vllm_seam.requests import forget_in_flight


def park(scheduler: Any, request: Request) -> None:
    """Take ``request`` out of the running; it keeps its blocks and waits, natively skipped."""
    if request.status == RequestStatus.RUNNING:
        scheduler.running.remove(request)
    else:
        dequeue(scheduler, request)
    forget_in_flight(request)
    scheduler._inflight_prefills.discard(request)
    request.status = RequestStatus.WAITING_FOR_STREAMING_REQ
    scheduler.num_waiting_for_streaming_input += 1
    scheduler._enqueue_waiting_request(request)
    # The V2 runner frees its slot; it is added anew at the join.
    scheduler.reset_preempted_req_ids.add(request.request_id)


def resume(scheduler: Any, request: Request, num_computed_tokens: int) -> None:
    """Let a parked ``request`` run again, ``num_computed_tokens`` of whose tokens have KV."""
    dequeue(scheduler, request)
    scheduler.num_waiting_for_streaming_input -= 1
    request.num_computed_tokens = num_computed_tokens
    request.status = RequestStatus.WAITING
    scheduler._enqueue_waiting_request(request)


def start(scheduler: Any, request: Request) -> None:
    """Queue a thread before all that wait to start: a family that runs is finished first."""
    scheduler.requests[request.request_id] = request
    scheduler.kv_holding_waiting.add_request(request)


def requeue_without_blocks(scheduler: Any, request: Request) -> None:
    """A parked ``request`` has lost its blocks: it waits where those wait that hold none."""
    dequeue(scheduler, request)
    request.num_computed_tokens = 0
    scheduler._enqueue_waiting_request(request)


def dequeue(scheduler: Any, request: Request) -> None:
    """Take ``request`` out of whichever queue it waits in."""
    scheduler.waiting.remove_requests([request])
    scheduler.kv_holding_waiting.remove_requests([request])
    scheduler.deferred_waiting.discard(request)
