"""What a thread waits for, as the scheduler knows it; when its client hears of it, ``waits.py`` says."""

from __future__ import annotations

from typing import Protocol

from vllm.v1.request import Request, RequestStatus

from forkjoin_scheduler.events import Waiting
from forkjoin_scheduler.family import Branch, BranchState
from forkjoin_scheduler.vllm_seam.live import LiveFamily
from forkjoin_scheduler.waits import Wait


class Threads(Protocol):
    """What is asked of the scheduler."""

    requests: dict[str, Request]
    #: Threads that the policy does not let run in this step.
    _held_back: set[str]


def wait_of(scheduler: Threads, thread: Branch) -> Wait | None:
    """What ``thread``, which decodes or is to, waits for in this step; None if it runs."""
    request = scheduler.requests.get(thread.request_id)
    if request is None:
        return "wave"  # it has not been started
    if thread.request_id in scheduler._held_back:
        return "turn"
    if request.status == RequestStatus.RUNNING:
        return None
    return "grammar" if request.status == RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR else "room"


def tell_waits(scheduler: Threads, live: LiveFamily) -> None:
    """Tell the client of a family, who listens, which threads wait in this step, and which no longer do."""
    assert live.waits is not None
    for thread in live.family.threads:
        if thread.end is None and thread.state is BranchState.DECODING:
            wait = wait_of(scheduler, thread)
            if live.waits.see(thread.index, wait, has_begun=thread.num_generated > 0):
                live.tell(Waiting(index=thread.index, waits_for=wait))
