"""What the scheduler says of its requests, checked against vLLM's block pool and queues."""

from __future__ import annotations

from typing import Any


def check_accounts(scheduler: Any) -> None:
    """Raise AssertionError where ``scheduler`` says something of its requests that isn't so."""
    check_begun_first(scheduler)


def check_begun_first(scheduler: Any) -> None:
    """Nothing that has begun waits behind something that has not."""
    if scheduler._spoken is None:
        return
    begun = [r.request_id for r in scheduler.waiting if scheduler._holds_kv_blocks(r)]
    assert not begun, f"these have begun, and wait among those that have not: {begun}"
    new = [r.request_id for r in scheduler.kv_holding_waiting if not scheduler._holds_kv_blocks(r)]
    assert not new, f"these have not begun, and wait among those that have: {new}"
