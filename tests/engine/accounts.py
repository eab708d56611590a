"""What the scheduler says of its requests, checked against vLLM's block pool and queues."""

from __future__ import annotations

from collections import Counter
from typing import Any

from forkjoin_scheduler.vllm_seam.fence import root_id


def check_accounts(scheduler: Any) -> None:
    """Raise AssertionError where ``scheduler`` says something of its requests that isn't so."""
    check_begun_first(scheduler)
    check_holdings(scheduler)


def check_begun_first(scheduler: Any) -> None:
    """Nothing that has begun waits behind something that has not."""
    if scheduler._core.bound_dialect is None:
        return
    begun = [r.request_id for r in scheduler.waiting if scheduler._holds_kv_blocks(r)]
    assert not begun, f"these have begun, and wait among those that have not: {begun}"
    new = [r.request_id for r in scheduler.kv_holding_waiting if not scheduler._holds_kv_blocks(r)]
    assert not new, f"these have not begun, and wait among those that have: {new}"


def check_holdings(scheduler: Any) -> None:
    """Of each admitted family the accounts say what the pool would get back if it ended now."""
    admitted = scheduler._gate.admitted
    left = [i for i in admitted if i not in scheduler.requests and i not in scheduler._core.live]
    assert not left, f"admitted, and gone: {left}"
    if scheduler._core.settings.admission == "family":
        lost = [i for i, live in scheduler._core.live.items() if live.family.is_live and i not in admitted]
        assert not lost, f"live, and not in the accounts: {lost}"
    for request_id, entry in admitted.items():
        found, wanted = scheduler._gate.come_to(entry).blocks, _num_freed_with(scheduler, request_id)
        assert found == wanted, f"{request_id}: {found} blocks in the accounts, {wanted} in the pool"


def check_lost(scheduler: Any) -> None:
    """What is to be admitted again lacks blocks: right after a step has been scheduled."""
    for request_id in scheduler._gate.lost_blocks:
        own = [r for i, r in scheduler.requests.items() if root_id(i) == request_id]
        lacking = [r for r in own if not r.num_computed_tokens and not _has_prefix(scheduler, r)]
        assert lacking, f"{request_id} waits to be admitted again, and has lost nothing"


def _has_prefix(scheduler: Any, request: Any) -> bool:
    """Whether ``request`` is a thread that has not run, and finds the KV that it starts on."""
    entry = scheduler._core.threads.get(request.request_id)
    if entry is None or request.num_preemptions or entry[1].num_generated:
        return False
    parent = scheduler.requests.get(entry[1].parent.request_id)
    return not entry[1].fork_len or (parent is not None and parent.num_computed_tokens > 0)


def _num_freed_with(scheduler: Any, request_id: str) -> int:
    """Blocks whose every reference is the family's: counted one by one, over all that hold any."""
    owned: Counter[int] = Counter()
    manager = scheduler.kv_cache_manager
    for single in manager.coordinator.single_type_managers:
        for holder, blocks in single.req_to_blocks.items():
            if root_id(holder) == request_id:
                owned.update(b.block_id for b in blocks)
    held = [h for i, s in scheduler._placing.to_stitch.items() if root_id(i) == request_id for h in s.rest]
    if live := scheduler._core.live.get(request_id):
        held += [*live.held.values(), *(h for job in live.jobs for h in job.unclaimed_blocks)]
    owned.update(b.block_id for h in held for blocks in h.blocks for b in blocks)
    return sum(
        b.ref_cnt == owned[b.block_id]
        for b in manager.block_pool.blocks
        if b.block_id in owned and not b.is_null
    )
