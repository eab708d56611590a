"""What a KV connector hears of branches, so that it stores their KV as any request's.

A connector stores the blocks that a request fills, by the hashes of its tokens. It hears of the requests of
clients from vLLM. It has to hear of those of families, too, and of what befalls no plain request.

Invariants (pinned by tests): a block is stored by the tokens that it holds, or not at all; nothing takes
blocks that a load still writes.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.core.kv_cache_utils import KVCacheBlock
from vllm.v1.request import Request, RequestStatus

from forkjoin_scheduler.vllm_seam.cache import kv
from forkjoin_scheduler.vllm_seam.view import SchedulerView


def announce(scheduler: SchedulerView, request: Request) -> None:
    """Tell the connector of a new request of a family, as vLLM does of those of clients."""
    if scheduler.connector is not None:
        scheduler.connector.on_new_request(request)


def is_loading(request: Request) -> bool:
    """Whether a load may still write the blocks of ``request``."""
    return bool(request.status == RequestStatus.WAITING_FOR_REMOTE_KVS)


def ends_with_load(scheduler: SchedulerView, request: Request) -> bool:
    """Whether the blocks of ``request``, which ends now, return to the pool only when its load has ended."""
    has_ended = request.request_id in scheduler.finished_recving_kv_req_ids
    scheduler.finished_recving_kv_req_ids.discard(request.request_id)
    return is_loading(request) and not has_ended


def has_ended_before_load(scheduler: SchedulerView, request: Request) -> bool:
    """Whether ``request`` has ended, and vLLM forgets it when its load has, which still writes its blocks."""
    return scheduler.connector is not None and request.is_finished()


def is_at_work(scheduler: SchedulerView) -> bool:
    """Whether the connector moves KV: what waits for that will run without any blocks of others.

    A load that has ended is none of it: vLLM lets its request start when it comes to it, which is after all
    that wait before it, and one of those may lack blocks.
    """
    connector = scheduler.connector
    if connector is None:
        return False
    loading = {request.request_id for request in scheduler.requests.values() if is_loading(request)}
    return bool(connector.has_pending_push_work()) or not loading <= scheduler.finished_recving_kv_req_ids


def give_back(scheduler: SchedulerView, blocks: list[KVCacheBlock]) -> None:
    """Return ``blocks`` of a family to the pool once the steps in flight have ended, as vLLM does its own.

    A load into them is not ordered after what such a step still writes.
    """
    if scheduler.sched_step_seq > scheduler.processed_step_seq:
        scheduler.deferred_frees.append((scheduler.sched_step_seq, blocks))
    else:
        kv.return_blocks(scheduler.kv_cache_manager, blocks)


def awaits_blocks(scheduler: SchedulerView) -> bool:
    """Whether blocks return to the pool when a step in flight has ended."""
    begun, ended = scheduler.sched_step_seq, scheduler.processed_step_seq
    return any(ended < fence <= begun for fence, _ in scheduler.deferred_frees)


def forget_blocks(scheduler: SchedulerView, request: Request) -> None:
    """``request`` does not run: when it goes on, it may do so on other blocks.

    Patch: what ``OffloadingConnector`` has noted of a request.
    Symptom without it: it appends the blocks of a branch that goes on to those that the branch had, and
    stores blocks by the hashes of tokens that others hold.
    Upstream: a connector hears of blocks that a preemption replaces, of vLLM's second runner when it is asked
    for KV, and of no others. Remove when it does.
    """
    for _, state in _noted(scheduler.connector, request):
        state.block_ids.clear()


def forget_tokens(scheduler: SchedulerView, request: Request, num_tokens: int) -> None:
    """All but the first ``num_tokens`` tokens of a parked ``request`` are cut off.

    Patch: as of ``forget_blocks``.
    Symptom without it: what the branch writes in their place is stored by, and loaded for, their hashes.
    Upstream: a connector hears nothing of tokens that are cut off. Remove when it does.
    """
    for config, state in _noted(scheduler.connector, request):
        num_chunks = num_tokens // config.tokens_per_chunk
        del state.offload_keys[num_chunks:]
        state.next_stored_chunk_idx = min(state.next_stored_chunk_idx, num_chunks)


def forget_uncomputed(scheduler: SchedulerView, request: Request) -> None:
    """``request`` ends, perhaps before all of its tokens have KV.

    Patch: as of ``forget_blocks``.
    Symptom without it: a block that is filled in part, or is another's by now, is stored by the hash of all
    its tokens: what is ended in the middle of its prompt is taken to have computed it.
    Upstream: only of what a client aborts the tokens that have KV are counted. Remove when they are of all.
    """
    for config, state in _noted(scheduler.connector, request):
        del state.block_ids[request.num_computed_tokens // config.tokens_per_block :]


def _noted(connector: Any, request: Request) -> list[tuple[Any, Any]]:
    """What ``OffloadingConnector`` has noted of each KV cache group of ``request``; nothing of others."""
    of_all = getattr(getattr(connector, "connector_scheduler", None), "_req_status", {})
    noted = of_all.get(request.request_id)
    return [] if noted is None else [*zip(noted.config.kv_group_configs, noted.group_states, strict=True)]
