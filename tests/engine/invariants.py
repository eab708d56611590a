"""What must hold of the scheduler between two of its calls, whatever has happened.

``check_invariants`` raises AssertionError naming the invariant that is broken and the requests that break it.
Call it after each ``schedule``, ``update_from_output``, ``finish_requests`` and ``reset_prefix_cache``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from copy import copy
from typing import Any
from weakref import WeakKeyDictionary

from vllm.v1.core.kv_cache_utils import make_block_hash_with_group_id
from vllm.v1.request import Request, RequestStatus

from forkjoin_scheduler.families.family import Branch, BranchState
from forkjoin_scheduler.families.thread_end import ThreadEnd
from forkjoin_scheduler.vllm_seam.cache import kv
from forkjoin_scheduler.vllm_seam.live import LiveFamily

#: More tokens than any context holds.
FAR = 1 << 30
#: Of requests, what was checked of their hashes.
_SEEN: WeakKeyDictionary[Request, int] = WeakKeyDictionary()
PARKED = RequestStatus.WAITING_FOR_STREAMING_REQ


def check_invariants(scheduler: Any) -> None:
    """Raise AssertionError if any of the invariants of the engine is broken."""
    check_queues(scheduler)
    check_parked(scheduler)
    check_blocks(scheduler)
    check_hashes(scheduler)
    check_own_hashes(scheduler)
    check_families(scheduler)


def check_queues(scheduler: Any) -> None:
    """Each unfinished request is in one queue: ``running`` if it runs, else one of the two that wait."""
    running = Counter(r.request_id for r in scheduler.running)
    waiting = Counter(r.request_id for q in (scheduler.waiting, scheduler.kv_holding_waiting) for r in q)
    for request_id, request in scheduler.requests.items():
        runs = request.status == RequestStatus.RUNNING
        if request.is_finished():
            continue  # its blocks return when a load into them has ended
        found = running[request_id], waiting[request_id]
        assert found == (runs, not runs), f"{_show(request)}: in (running, waiting) {found} times"
    strangers = (running.keys() | waiting.keys()) - scheduler.requests.keys()
    assert not strangers, f"queued, but no request: {strangers}"


def check_parked(scheduler: Any) -> None:
    """A parked request is counted once, has no sample in flight that is delivered, and one way out."""
    parked = [r for r in scheduler.requests.values() if r.status == PARKED]
    counted = scheduler.num_waiting_for_streaming_input
    assert counted == len(parked), f"{counted} counted as parked, found {list(map(_show, parked))}"
    for request in parked:
        if request.num_in_flight_tokens:
            is_dropped = request.drop_stale_output
            assert is_dropped, f"{_show(request)}: parked with a sample in flight that is delivered"
            stale, in_flight = request.num_stale_output_tokens, request.num_in_flight_tokens
            assert stale == in_flight, (
                f"{_show(request)}: {in_flight} tokens in flight, {stale} of them stale"
            )
    for live, branch in _branches(scheduler):
        request = scheduler.requests.get(branch.request_id)
        if request is None or request.status != PARKED or branch.state is BranchState.PARKED:
            continue
        is_restored = bool(live.jobs) or live in scheduler._eviction.evicted
        assert is_restored, f"{_show(request)}: it decodes, and is parked with nothing that lets it go on"


def check_blocks(scheduler: Any) -> None:
    """Each reference to a block has one owner, and a request without blocks no bookkeeping of them."""
    manager = scheduler.kv_cache_manager
    owned: Counter[int] = Counter()
    for single in manager.coordinator.single_type_managers:
        for request_id, blocks in single.req_to_blocks.items():
            assert request_id in scheduler.requests, f"{request_id}: ended, and has blocks"
            owned.update(b.block_id for b in blocks if not b.is_null)
        empty = [i for i in single.num_cached_block if not single.req_to_blocks.get(i)]
        assert not empty, f"no blocks, but a number of cached ones: {empty}"
        for request_id, num_cached in single.num_cached_block.items():
            num_blocks = len(single.req_to_blocks[request_id])
            assert num_cached <= num_blocks, f"{request_id}: {num_cached} of {num_blocks} blocks cached"
    for held in _held(scheduler):
        owned.update(b.block_id for blocks in held.blocks for b in blocks if not b.is_null)
    for _, blocks in scheduler.deferred_frees:
        owned.update(b.block_id for b in blocks)
    wrong = {
        b.block_id: (b.ref_cnt, owned[b.block_id])
        for b in manager.block_pool.blocks
        if not b.is_null and b.ref_cnt != owned[b.block_id]
    }
    assert not wrong, f"blocks with (references, owners): {wrong}"
    for request in scheduler.requests.values():
        _check_table(scheduler, request)


def _check_table(scheduler: Any, request: Request) -> None:
    """The blocks of a request hold its computed tokens; one that has none waits where such wait."""
    has_blocks = kv.has_blocks(scheduler.kv_cache_manager, request)
    if request.is_finished():
        return  # a load into its blocks has not ended
    waits = request.status != RequestStatus.RUNNING
    if waits and not request.num_computed_tokens:
        assert not has_blocks, f"{_show(request)}: waits to be computed from its start, and has blocks"
    holds = any(r is request for r in scheduler.kv_holding_waiting)
    if waits and request.num_computed_tokens:
        assert holds, f"{_show(request)}: has KV, and waits among those that have none"
    for single in scheduler.kv_cache_manager.coordinator.single_type_managers:
        if request.request_id in scheduler._placing.to_stitch:
            continue  # the blocks behind the kept ones are allocated when it is scheduled
        room = len(single.req_to_blocks.get(request.request_id, ())) * single.block_size
        computed = request.num_computed_tokens
        assert computed <= room, (
            f"{_show(request)}: {computed} tokens computed, room for {room} in its blocks"
        )


def check_hashes(scheduler: Any) -> None:
    """A hashed block holds the KV of its hash's tokens in a row: what is stitched has no hash of the whole."""
    for group, single in enumerate(scheduler.kv_cache_manager.coordinator.single_type_managers):
        if single.block_size != single.block_pool.hash_block_size:
            continue
        for live, branch in _branches(scheduler):
            if (request := scheduler.requests.get(branch.request_id)) is None:
                continue
            own = [make_block_hash_with_group_id(h, group) for h in request.block_hashes]
            in_a_row = _num_in_a_row(branch) if live.dialect.join.moves_kv else FAR
            blocks = single.req_to_blocks.get(branch.request_id, ())
            for i, (block, own_hash) in enumerate(zip(blocks, own, strict=False)):
                is_linear = (i + 1) * single.block_size <= in_a_row
                is_own = block.block_hash == own_hash
                assert is_linear or not is_own, (
                    f"{branch}: block {i} is hashed, {in_a_row} tokens are in a row"
                )
                is_other = is_linear and block.block_hash is not None and not is_own
                assert not is_other, f"{branch}: block {i} has the hash of other tokens"


def check_own_hashes(scheduler: Any) -> None:
    """The hashes of each request are those of its own tokens, whoever computed them."""
    for request in scheduler.requests.values():
        if request._block_hasher is None:
            continue
        seen = hash((tuple(request._all_token_ids), tuple(request.block_hashes)))
        if _SEEN.get(request) != seen:
            _SEEN[request] = seen
            twin = copy(request)
            twin.block_hashes = []
            assert request.block_hashes == request._block_hasher(twin), f"{_show(request)}: other hashes"


def _num_in_a_row(branch: Branch) -> int:
    """Tokens of a branch's context whose KV is that of them one behind the other, at their own positions.

    Of its first joined fork the first thread stands behind the branch as if it were its own text.
    """
    if branch.start_offset:
        assert branch.parent is not None
        return min(branch.fork_len, _num_in_a_row(branch.parent))
    before = FAR if branch.parent is None else _num_in_a_row(branch.parent)
    if branch.parent is not None and before < branch.fork_len:
        return before
    if not branch.joined_forks:
        return FAR
    return _num_in_a_row_behind(branch.joined_forks[0][0])


def _num_in_a_row_of_own(thread: Branch) -> int:
    if thread.start_offset:
        return thread.fork_len
    return _num_in_a_row_behind(thread.joined_forks[0][0]) if thread.joined_forks else FAR


def _num_in_a_row_behind(first: Branch) -> int:
    """The same behind a join whose first thread this is. Its end of sequence is not in the joined context."""
    assert first.plan is not None
    num_joined = len(first.token_ids) - (first.end is ThreadEnd.EOS)
    own = first.fork_len + len(first.plan.header_ids) + num_joined
    return min(own, _num_in_a_row_of_own(first))


def check_families(scheduler: Any) -> None:
    """The tree and the scheduler are of one mind, and every generated token is charged once."""
    for request_id, (live, branch) in scheduler._core.threads.items():
        assert live in scheduler._core.live.values(), f"{request_id}: a thread of a family that has ended"
        decodes = branch.is_live and request_id in scheduler.requests
        assert decodes, f"{request_id}: among the threads that decode, and has ended"
    for live in scheduler._core.live.values():
        live.family.check_integrity()
        generated = sum(b.num_generated for b in live.family.root.subtree())
        assert generated == live.family.num_generated, (
            f"{live.family.request_id}: tokens charged twice, or not"
        )
        for branch in live.family.root.subtree():
            _check_branch(scheduler, live, branch)


def _check_branch(scheduler: Any, live: LiveFamily, branch: Branch) -> None:
    request = scheduler.requests.get(branch.request_id)
    ends = branch.end is not None  # it may still get the KV of its last tokens
    if branch in live.later:
        assert branch.is_live, f"{branch}: ended, and is still to start"
        assert request is None, f"{branch}: still to start, but has a request"
        assert branch.parent is not None, f"{branch}: the request itself is still to start"
        is_next = (
            branch.parent.planned and scheduler._core.fj_params[branch.parent.request_id].at_prompt
        )  # its parent has been joined, and forks as soon as its KV is there
        is_waited_for = branch.parent.state is BranchState.PARKED or is_next
        assert is_waited_for, f"{branch}: still to start, and not waited for"
        return
    if not branch.is_live or ends:
        assert request is None or request.is_finished(), f"{branch}: ended, but not its request"
    else:
        assert request is not None, f"{branch}: its request is gone"
    if branch.parent is not None and branch.is_live and not ends:
        assert branch.request_id in scheduler._core.threads, f"{branch}: decodes, but not among the threads"
    if branch.state is BranchState.PARKED:
        assert request is not None, f"{branch}: its request is gone"
        assert request.status == PARKED, f"{branch}: its request is not parked, but {request.status.name}"
    assert branch.state is not BranchState.JOINABLE, f"{branch}: its threads have ended, and it does not join"
    if branch in live.held:
        is_due = ends and branch.parent is not None and branch.parent.state is BranchState.PARKED
        assert is_due, f"{branch}: its blocks are held for no join"


def _branches(scheduler: Any) -> Iterator[tuple[LiveFamily, Branch]]:
    for live in scheduler._core.live.values():
        for branch in live.family.root.subtree():
            yield live, branch


def _held(scheduler: Any) -> Iterable[kv.HeldBlocks]:
    """All blocks that are held in nobody's name."""
    for live in scheduler._core.live.values():
        yield from live.held.values()
        for job in live.jobs:
            yield from job.unclaimed_blocks
    for stitched in scheduler._placing.to_stitch.values():
        yield from stitched.rest
    for held, _ in scheduler._leasing._held.values():
        yield held


def _show(request: Request) -> str:
    return (
        f"{request.request_id} ({request.status.name}, {request.num_computed_tokens} of {request.num_tokens} "
        f"computed, {request.num_in_flight_tokens} in flight)"
    )
