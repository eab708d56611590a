"""Every touch of vLLM's KVCacheManager: share a prefix, hold a thread's blocks, adopt them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from math import lcm
from operator import attrgetter
from typing import Any

from vllm.v1.core.kv_cache_manager import KVCacheBlocks, KVCacheManager
from vllm.v1.core.kv_cache_utils import KVCacheBlock, get_block_hash, resolve_block_hashes
from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager, MambaManager
from vllm.v1.request import Request

from forkjoin_scheduler.families.stitch import BlockSpan, Slots, lay_out, slots

_BLOCK_ID, _IS_NULL = attrgetter("block_id"), attrgetter("is_null")
#: The attribute of vLLM's manager that ``give_back_with`` sets.
_GIVE_BACK = "_forkjoin_give_back"


@dataclass(eq=False)
class HeldBlocks:
    """Blocks taken from a finished request, by KV cache group, with their cached counts.

    They hold the KV of its first ``num_tokens`` tokens.
    """

    blocks: list[list[KVCacheBlock]]
    num_cached: list[int]
    num_tokens: int


@dataclass(frozen=True, eq=False)
class KVSpan:
    """The KV of the tokens ``first`` to ``end`` (exclusive) of what ``held`` holds."""

    held: HeldBlocks
    first: int
    end: int


@dataclass(frozen=True, eq=False)
class Stitched:
    """KV that is put together: ``held``, once ``sources`` (slots) are moved to its ``holes`` (tokens).

    ``rest``: what is to be released after that.
    """

    held: HeldBlocks
    sources: Slots
    holes: Slots
    rest: list[HeldBlocks]

    @property
    def num_tokens(self) -> int:
        """Tokens of the whole."""
        return self.held.num_tokens


def shared_prefix(manager: KVCacheManager, source: str | HeldBlocks, num_tokens: int) -> KVCacheBlocks:
    """The blocks of a request, or held ones, with the first ``num_tokens`` tokens, by reference.

    The count need not be a multiple of the block size: vLLM copies a partial tail on write.
    """
    of = manager.get_blocks(source).blocks if isinstance(source, str) else source.blocks
    groups = []
    for single, blocks in zip(manager.coordinator.single_type_managers, of, strict=True):
        groups.append(list(blocks[: -(-num_tokens // single.block_size)]))
    return manager.create_kv_cache_blocks(tuple(groups))


def hold(manager: KVCacheManager, request: Request, num_tokens: int) -> HeldBlocks:
    """Take the blocks of ``request`` out of its name, without returning them to the pool.

    Its first ``num_tokens`` tokens count at most; those without KV never do. A block stays in its place of
    the table, those before it being null behind a sliding window, so the table is read before it is given up:
    what is given up need not have them.
    """
    held = HeldBlocks([], [], min(request.num_computed_tokens, num_tokens))
    for single in manager.coordinator.single_type_managers:
        held.num_cached.append(single.num_cached_block.get(request.request_id, 0))
        held.blocks.append(list(single.req_to_blocks.get(request.request_id, ())))
        single.pop_blocks_for_free(request.request_id)
    return held


def release(manager: KVCacheManager, *all_held: HeldBlocks) -> None:
    """Return held blocks to the pool, of each the tail first."""
    for held in all_held:
        for blocks in held.blocks:
            _give_back(manager, blocks)


def transfer_blocks(manager: KVCacheManager, request: Request, held: HeldBlocks) -> None:
    """Give ``request`` the held blocks in place of its own, which return to the pool."""
    free(manager, request)
    for single, blocks, num_cached in zip(
        manager.coordinator.single_type_managers, held.blocks, held.num_cached, strict=True
    ):
        single.req_to_blocks[request.request_id] = blocks
        single.num_cached_block[request.request_id] = num_cached


def is_there(manager: KVCacheManager, source: str | HeldBlocks, num_tokens: int) -> bool:
    """Whether the source has all blocks that the token after its first ``num_tokens`` ones attends to.

    A request that went on gives blocks back as they leave its sliding window.
    """
    of = manager.get_blocks(source).blocks if isinstance(source, str) else source.blocks
    for single, blocks in zip(manager.coordinator.single_type_managers, of, strict=True):
        first = single.get_num_skipped_tokens(num_tokens) // single.block_size
        end = -(-num_tokens // single.block_size)
        if len(blocks) < end or any(map(_IS_NULL, blocks[first:end])):
            return False
    return True


def is_recurrent(manager: KVCacheManager) -> bool:
    """Whether layers keep one state of the whole sequence (Mamba, linear attention), in its last block.

    Such a state can't be cut short: what goes back by a token computes all since a state that was kept.
    """
    return any(isinstance(single, MambaManager) for single in manager.coordinator.single_type_managers)


def cache_state(manager: KVCacheManager, request: Request) -> None:
    """Let the prefix cache have the recurrent state of ``request``, if it ends a block.

    A thread that takes this block by reference would hash it, and vLLM hashes no block twice. The state is
    of a step before this one, so what starts in this one may have it.
    """
    if request.num_computed_tokens and is_recurrent(manager):
        states = [s for s in manager.coordinator.single_type_managers if isinstance(s, MambaManager)]
        of_this_step = [set(state.cached_blocks_this_step) for state in states]
        manager.cache_blocks(request, request.num_computed_tokens)
        for state, hashes in zip(states, of_this_step, strict=True):
            state.cached_blocks_this_step.intersection_update(hashes)


def in_whole_blocks(manager: KVCacheManager, num_tokens: int) -> int:
    """How many of ``num_tokens`` tokens lie in blocks that they fill, in every KV cache group."""
    size = lcm(*(single.block_size for single in manager.coordinator.single_type_managers))
    return num_tokens // size * size


def keep(manager: KVCacheManager, request: Request, num_tokens: int) -> int:
    """Of a waiting ``request`` let at most ``num_tokens`` tokens count as computed; returns how many do.

    One that keeps none gives up its blocks: vLLM takes it for one that has not started. So does one whose
    recurrent state has seen later tokens.
    """
    kept = min(request.num_computed_tokens, num_tokens)
    if kept < request.num_computed_tokens and is_recurrent(manager):
        kept = 0
    if not kept:
        free(manager, request)
    return kept


def drop_tail(manager: KVCacheManager, request: Request, *, needed: int) -> int:
    """Return the partly filled last block of ``request`` to the pool; returns how many tokens have KV still.

    Nothing is returned where that would be fewer than ``needed``, which can't be computed again, with
    several KV cache groups, whose blocks end at different tokens, or where that block has a recurrent state.
    """
    if len(manager.coordinator.single_type_managers) > 1 or is_recurrent(manager):
        return request.num_computed_tokens
    (single,) = manager.coordinator.single_type_managers
    num_whole = request.num_computed_tokens // single.block_size
    if num_whole * single.block_size < needed:
        return request.num_computed_tokens
    _give_back_after(manager, single.req_to_blocks[request.request_id], num_whole)
    return keep(manager, request, num_whole * single.block_size)


def keep_whole_blocks(manager: KVCacheManager, request: Request, num_tokens: int) -> int:
    """Keep the blocks of a waiting ``request`` that its first ``num_tokens`` tokens fill; returns how many.

    The others return to the pool: they may be hashed by what follows. None is kept with several KV cache
    groups, whose blocks end at different tokens, or where the window at that token has lost some.
    """
    singles, num_kept = manager.coordinator.single_type_managers, 0
    if len(singles) == 1:
        (single,) = singles
        num_whole = min(request.num_computed_tokens, num_tokens) // single.block_size
        if is_there(manager, request.request_id, num_whole * single.block_size):
            num_kept = num_whole * single.block_size
            _give_back_after(manager, single.req_to_blocks[request.request_id], num_whole)
            num_cached = single.num_cached_block.get(request.request_id, 0)
            single.num_cached_block[request.request_id] = min(num_cached, num_whole)
    return keep(manager, request, num_kept)


def _give_back_after(manager: KVCacheManager, blocks: list[KVCacheBlock], num_kept: int) -> None:
    """Return all but the first ``num_kept`` of a request's ``blocks`` to the pool, the last one first."""
    gone = blocks[num_kept:]
    del blocks[num_kept:]  # first: an error must not leave them to be returned twice
    _give_back(manager, gone)


def free(manager: KVCacheManager, request: Request) -> None:
    """Return the blocks of ``request`` to the pool, the tail first."""
    if hasattr(manager, _GIVE_BACK):
        _give_back(manager, manager.pop_blocks_for_free(request))
    else:
        manager.free(request)


def _give_back(manager: KVCacheManager, blocks: list[KVCacheBlock]) -> None:
    """Return ``blocks`` to the pool, the last one first; see ``give_back_with``."""
    if blocks:
        getattr(manager, _GIVE_BACK, partial(return_blocks, manager))(blocks)


def return_held(manager: KVCacheManager, held: HeldBlocks) -> None:
    """Return held blocks to the pool now."""
    for blocks in held.blocks:
        return_blocks(manager, blocks)


def return_blocks(manager: KVCacheManager, blocks: list[KVCacheBlock]) -> None:
    """Return ``blocks`` to the pool now, the last one first."""
    manager.block_pool.free_blocks(reversed(blocks))


def give_back_with(manager: KVCacheManager, give_back: Callable[[list[KVCacheBlock]], None]) -> None:
    """Let ``give_back`` return the blocks to the pool that are given back here.

    A load of a KV connector is not ordered after steps in flight, which may still write them.
    """
    setattr(manager, _GIVE_BACK, give_back)


def stitch(manager: KVCacheManager, start: KVSpan, others: Sequence[KVSpan]) -> Stitched:
    """Let the KV of ``others`` follow that of ``start``, which begins at token 0, in their own blocks.

    Of the only KV cache group. Blocks that somebody else holds, or could find, are not written.
    """
    (single,) = manager.coordinator.single_type_managers
    size = single.block_size
    blocks = start.held.blocks[0]
    num_whole = start.end // size
    pieces = [KVSpan(start.held, num_whole * size, start.end), *others]
    has = {block.block_id for block in blocks[:num_whole]}
    found = [found for piece in pieces for found in _block_spans(piece, size, has)]
    layout = lay_out([lent for _, lent in found], size, keeps_first=start.end % size > 0)
    table = [*blocks[:num_whole], *(found[i][0] for i in layout.kept)]
    num_tokens = start.end + sum(piece.end - piece.first for piece in others)
    held = HeldBlocks([table], [min(start.held.num_cached[0], num_whole)], num_tokens)
    rest, taken = [], {block.block_id for block in table}
    for piece in (start, *others):  # each holds the blocks of the prefix once more
        blocks = piece.held.blocks[0]
        rest.append(HeldBlocks([[b for b in blocks if b.block_id not in taken]], [0], 0))
        taken -= {block.block_id for block in blocks}
    return Stitched(held, layout.sources, num_whole * size + layout.holes, rest)


def _block_spans(piece: KVSpan, size: int, has: set[int]) -> Iterator[tuple[KVCacheBlock, BlockSpan]]:
    """The blocks that a piece lies in. ``has``: those that the context has already, to which they are added.

    Two threads may have found the same block, of what they begin with in common.
    """
    for i in range(piece.first // size, -(-piece.end // size)):
        block = piece.held.blocks[0][i]
        is_ours = block.ref_cnt == 1 and block.block_hash is None
        first, end = max(piece.first - i * size, 0), min(piece.end - i * size, size)
        yield block, BlockSpan(block.block_id, first, end, is_ours, block.block_id in has)
        has.add(block.block_id)


def request_slots(manager: KVCacheManager, request_id: str, tokens: Slots) -> Slots:
    """The slots of ``tokens`` of a request (in the only KV cache group)."""
    (single,) = manager.coordinator.single_type_managers
    blocks = manager.get_blocks(request_id).blocks[0]
    return slots([b.block_id for b in blocks], single.block_size, tokens)


def tokens_of_block(manager: KVCacheManager, group: int) -> int:
    """Tokens of a block of one KV cache group."""
    return int(manager.coordinator.single_type_managers[group].block_size)


def first_blocks(manager: KVCacheManager, group: int, request_id: str, num: int) -> list[int]:
    """The ids of the first ``num`` blocks that a request has in one KV cache group."""
    blocks = manager.coordinator.single_type_managers[group].req_to_blocks[request_id]
    return [block.block_id for block in blocks[:num]]


def has_blocks(manager: KVCacheManager, request: Request) -> bool:
    """Whether ``request`` holds any: one may before any of its tokens counts as computed."""
    return any(
        single.req_to_blocks.get(request.request_id) for single in manager.coordinator.single_type_managers
    )


def num_blocks(manager: KVCacheManager) -> int:
    """Blocks of the pool that requests can have."""
    return manager.block_pool.num_gpu_blocks - 1  # one is vLLM's null block


def num_free_blocks(manager: KVCacheManager) -> int:
    """Blocks that nobody holds; some of them may still be found by the prefix cache."""
    return manager.block_pool.get_num_free_blocks()


def block_size(manager: KVCacheManager) -> int:
    """Tokens for which a request takes one block, all KV cache groups counted together."""
    sizes = [single.block_size for single in manager.coordinator.single_type_managers]
    return max(round(1 / sum(1 / size for size in sizes)), 1)


def num_new_blocks(manager: KVCacheManager, request: Request, leases: Counter[int]) -> int:
    """Blocks that ``request`` takes from the free ones when it starts: all but those that others hold.

    Null ones, before a sliding window, are taken by nobody. ``leases``: how often each is kept, for nobody
    who runs.
    """
    found, _, _ = manager.get_computed_blocks(request)
    num_held = sum(b.is_null or b.ref_cnt > leases[b.block_id] for blocks in found.blocks for b in blocks)
    return -(-request.num_tokens // block_size(manager)) - num_held


def num_lacking(manager: KVCacheManager, request: Request, num_tokens: int) -> int:
    """Blocks that ``request`` lacks for the KV of ``num_tokens`` tokens."""
    singles = manager.coordinator.single_type_managers
    return sum(
        max(-(-num_tokens // single.block_size) - len(single.req_to_blocks.get(request.request_id, ())), 0)
        for single in singles
    )


def drop_tables(manager: KVCacheManager, is_dropped: Callable[[str], bool]) -> None:
    """Forget the blocks of all requests whose ids ``is_dropped`` names: they have no owner then."""
    for single in manager.coordinator.single_type_managers:
        for request_id in [i for i in single.req_to_blocks if is_dropped(i)]:
            single.pop_blocks_for_free(request_id)


def free_unowned(manager: KVCacheManager, held: Counter[int]) -> None:
    """Return each block to the pool so often as it is taken by nobody.

    ``held``: how often each block, by its id, is taken beside the tables of requests.
    """
    owned = _in_tables(manager) + held
    pool = manager.block_pool
    pool.free_blocks(b for b in pool.blocks if not b.is_null for _ in range(b.ref_cnt - owned[b.block_id]))


def miscounted(manager: KVCacheManager, held: Counter[int]) -> str | None:
    """What is wrong with the accounts of the pool; None if each block is taken as often as it is owned.

    ``held``: as of ``free_unowned``.
    """
    owned, pool = _in_tables(manager) + held, manager.block_pool
    for block in pool.blocks:
        if not block.is_null and block.ref_cnt != owned[block.block_id]:
            return (
                f"block {block.block_id} taken {block.ref_cnt} times and owned {owned[block.block_id]} times"
            )
    num_free = sum(b.ref_cnt == 0 and not b.is_null for b in pool.blocks)
    if num_free != pool.get_num_free_blocks():
        return f"{num_free} blocks that nobody owns, and {pool.get_num_free_blocks()} that are free"
    return None


def _in_tables(manager: KVCacheManager) -> Counter[int]:
    """How often each block stands in a table of a request."""
    singles = manager.coordinator.single_type_managers
    return Counter(b.block_id for s in singles for blocks in s.req_to_blocks.values() for b in blocks)


def num_cached_tokens(manager: KVCacheManager, request: Request) -> int:
    """Tokens of ``request`` that the prefix cache has."""
    return manager.estimate_cached_tokens(request)


def num_freed_with(
    manager: KVCacheManager, request_ids: Iterable[str], all_held: Iterable[HeldBlocks]
) -> int:
    """Blocks that return to the pool when these requests and ``all_held`` let go of theirs: nobody else's."""
    managers = manager.coordinator.single_type_managers
    tables = [single.req_to_blocks.get(i, ()) for i in request_ids for single in managers]
    tables += [blocks for held in all_held for blocks in held.blocks]
    ids = [*map(_BLOCK_ID, chain.from_iterable(tables))]
    owned, blocks = Counter(ids), dict(zip(ids, chain.from_iterable(tables), strict=True))
    return sum(num == blocks[i].ref_cnt and not blocks[i].is_null for i, num in owned.items())


def cached_blocks(manager: KVCacheManager, request: Request) -> tuple[list[list[KVCacheBlock]], int]:
    """The blocks that the prefix cache finds for the tokens of ``request``, by KV cache group, and tokens.

    A stitched context has blocks of threads in its table, too: they are found for other tokens, or for none.
    """
    found, num_tokens, hash_size = [], request.num_tokens, manager.block_pool.hash_block_size
    for single in manager.coordinator.single_type_managers:
        hashes = resolve_block_hashes(request.block_hashes, hash_size, single.block_size)
        table = single.req_to_blocks[request.request_id]
        there = [
            (i, block)
            for i, (block, of_tokens) in enumerate(zip(table, hashes, strict=False))
            if block.block_hash is not None and get_block_hash(block.block_hash) == of_tokens
        ]
        found.append([block for _, block in there])
        num_tokens = min(num_tokens, (there[-1][0] + 1) * single.block_size if there else 0)
    return found, num_tokens


def hold_too(manager: KVCacheManager, groups: list[list[KVCacheBlock]], num_tokens: int) -> HeldBlocks:
    """Hold these blocks beside whoever holds them, with the KV of so many tokens."""
    for blocks in groups:
        manager.block_pool.touch(blocks)
    return HeldBlocks(groups, [len(blocks) for blocks in groups], num_tokens)


def num_holders(manager: KVCacheManager, block_id: int) -> int:
    """How often the block is taken."""
    return manager.block_pool.blocks[block_id].ref_cnt


def num_held_by_none_else(manager: KVCacheManager, holders: Counter[int]) -> int:
    """Of the blocks that are held so often as ``holders`` says: how many nobody else holds."""
    blocks = manager.block_pool.blocks
    return sum(blocks[block_id].ref_cnt == num for block_id, num in holders.items())


def let_give_way(manager: KVCacheManager, make_room: Callable[[Callable[[], int]], bool]) -> None:
    """Where too few blocks are free, ask ``make_room`` for more as long as it says that there are.

    It is given what says how many free blocks are needed at least.

    Patch: ``KVCacheManager.allocate_slots`` of this manager.
    Symptom without it: blocks that are kept for requests to come are no candidates for vLLM's preemption,
    so it preempts what runs, and lets wait what would fit.
    Upstream: blocks that are held by no request are never given up (vLLM v1). Remove when there is a way.
    """
    original: Callable[..., KVCacheBlocks | None] = manager.allocate_slots

    def allocate_slots(request: Request, num_new_tokens: int, **more: Any) -> KVCacheBlocks | None:
        blocks = original(request, num_new_tokens, **more)
        if blocks is not None:  # nearly always, and each step asks for each row
            return blocks
        needed = partial(_num_needed, manager, request, num_new_tokens, **more)
        while blocks is None and make_room(needed):
            blocks = original(request, num_new_tokens, **more)
        return blocks

    setattr(manager, "allocate_slots", allocate_slots)  # noqa: B010


def _num_needed(
    manager: KVCacheManager,
    request: Request,
    num_new_tokens: int,
    *,
    num_new_computed_tokens: int = 0,
    new_computed_blocks: KVCacheBlocks | None = None,
    full_sequence_must_fit: bool = False,
    **_: Any,
) -> int:
    """Free blocks that ``allocate_slots`` needs at least, with these arguments; 0 where that is unknown."""
    if len(manager.coordinator.single_type_managers) != 1:
        return 0
    (single,) = manager.coordinator.single_type_managers
    if not isinstance(single, FullAttentionManager):
        return 0
    num_tokens = request.num_computed_tokens + num_new_computed_tokens + num_new_tokens
    if full_sequence_must_fit:
        num_tokens = max(num_tokens, request.num_tokens)
    num_there = len(single.req_to_blocks[request.request_id]) if has_blocks(manager, request) else 0
    num_found = len(new_computed_blocks.blocks[0]) if new_computed_blocks is not None else 0
    return -(-num_tokens // single.block_size) - num_there - num_found


def forget_hashes(manager: KVCacheManager) -> None:
    """Let the prefix cache find no block that there is; who holds blocks holds them on."""
    pool = manager.block_pool
    pool.evict_blocks({block.block_id for block in pool.blocks if block.block_hash is not None})


def guard_hashing(manager: KVCacheManager, may_be_hashed: Callable[[Request], bool]) -> None:
    """Let the prefix cache pass by requests that may not be hashed.

    Patch: ``KVCacheCoordinator.cache_blocks`` of this manager's coordinator.
    Symptom without it: a stitched block is found by a request with the same tokens in a row, whose
    KV is another.
    Upstream: requests have a switch for reading the prefix cache (``skip_reading_prefix_cache``)
    and none for writing it. Remove when there is one.
    """
    original: Callable[..., None] = manager.coordinator.cache_blocks

    def cache_blocks(request: Request, *args: Any, **kwargs: Any) -> None:
        if may_be_hashed(request):
            original(request, *args, **kwargs)

    setattr(manager.coordinator, "cache_blocks", cache_blocks)  # noqa: B010
