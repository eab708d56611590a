"""Every touch of vLLM's KVCacheManager: share a prefix, hold a thread's blocks, adopt them."""

from __future__ import annotations

from dataclasses import dataclass

from vllm.v1.core.kv_cache_manager import KVCacheBlocks, KVCacheManager
from vllm.v1.core.kv_cache_utils import KVCacheBlock
from vllm.v1.request import Request


@dataclass
class HeldBlocks:
    """Blocks taken from a finished request, by KV cache group, with their cached counts.

    They hold the KV of its first ``num_tokens`` tokens.
    """

    blocks: list[list[KVCacheBlock]]
    num_cached: list[int]
    num_tokens: int


def shared_prefix(manager: KVCacheManager, parent_id: str, num_tokens: int) -> KVCacheBlocks:
    """The blocks of ``parent_id`` that hold its first ``num_tokens`` tokens, by reference.

    The count need not be a multiple of the block size: vLLM copies a partial tail on write.
    """
    groups = []
    for single, blocks in zip(
        manager.coordinator.single_type_managers, manager.get_blocks(parent_id).blocks, strict=True
    ):
        groups.append(list(blocks[: -(-num_tokens // single.block_size)]))
    return manager.create_kv_cache_blocks(tuple(groups))


def hold(manager: KVCacheManager, request: Request) -> HeldBlocks:
    """Take the blocks of ``request`` out of its name, without returning them to the pool.

    The token sampled last has KV in async scheduling only; it is left out in both modes.
    """
    held = HeldBlocks([], [], min(request.num_computed_tokens, request.num_tokens - 1))
    for single in manager.coordinator.single_type_managers:
        held.num_cached.append(single.num_cached_block.get(request.request_id, 0))
        held.blocks.append(single.pop_blocks_for_free(request.request_id))
    return held


def release(manager: KVCacheManager, held: HeldBlocks) -> None:
    """Return held blocks to the pool, the tail first."""
    for blocks in held.blocks:
        manager.block_pool.free_blocks(reversed(blocks))


def adopt(manager: KVCacheManager, request: Request, held: HeldBlocks) -> None:
    """Give ``request`` the held blocks in place of its own, which return to the pool."""
    manager.free(request)
    for single, blocks, num_cached in zip(
        manager.coordinator.single_type_managers, held.blocks, held.num_cached, strict=True
    ):
        single.req_to_blocks[request.request_id] = blocks
        single.num_cached_block[request.request_id] = num_cached
