"""Copies of KV slots: what stitched joins move, in every layout, block size and dtype."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from forkjoin_scheduler.tensors import slots
from forkjoin_scheduler.tensors.slots import Copier, Layout
from forkjoin_scheduler.verify import kv
from forkjoin_scheduler.verify.device import to_device
from forkjoin_scheduler.verify.kv import Memory
from forkjoin_scheduler.verify.result import Result, not_run

BLOCK_SIZES = (16, 32, 64, 128)
#: KV heads and their size.
HEADS = ((1, 128), (2, 64), (3, 96), (8, 32))
#: The row of MLA: half of what a latent vector of 512 and a key of 64 have.
LATENT = (1, 288)
FAR = "copy of far slots"
FAR_BLOCK, FAR_HEAD = 16, 128


def check(device: torch.device) -> Iterator[Result]:
    """Every layout that has a copier, on ``device``; a difference counts bytes."""
    alike: dict[tuple[Copier, bool], list[Layout]] = {}
    for layout, copier in slots.COPIERS.items():
        alike.setdefault((copier, _is_latent(layout)), []).append(layout)
    for layouts in alike.values():
        for memory in _memories(layouts[0]):
            for kind, orders in _orders(memory).items():
                yield _compared(device, layouts, memory, kind, orders)
    yield _far(device)


def _is_latent(layout: Layout) -> bool:
    """Whether a backend keeps one latent vector of a token, and no heads."""
    return "MLA" in layout[0]


def _memories(layout: Layout) -> Iterator[Memory]:
    """What a backend lays out in this way: CPUs have one order of axes, and bf16 in tiles."""
    is_cpu, has_heads = layout[0] == "CPU_ATTN", not _is_latent(layout)
    for order in ("LBHNC",) if is_cpu else kv.ORDERS:
        for dtype in ("bf16",) if layout[1] == "amx" else kv.DTYPES:
            for block_size in BLOCK_SIZES:
                # each size meets each of the heads in one of the orders
                turn = list(kv.ORDERS).index(order) + BLOCK_SIZES.index(block_size)
                heads = HEADS[turn % len(HEADS)] if has_heads else LATENT
                yield Memory(order, dtype, block_size, *heads, has_heads=has_heads)


def _orders(memory: Memory) -> dict[str, npt.NDArray[np.int64]]:
    """What may be ordered of a step, by what it is like: [n, 2] of source and destination slots."""
    size = memory.block_size
    shuffled = np.random.default_rng(size).permutation(memory.num_blocks * size)
    tail = np.arange(size - 3) + 2 * size
    two = np.arange(2 * size - 1)
    return {
        "one slot": np.array([[5 * size - 1, size]]),
        "the tail of a block": np.stack([tail, tail + 3 * size + 3], axis=1),
        "over two blocks": np.stack([two, two + 4 * size + 1], axis=1),
        "at random": shuffled[: 2 * (2 * size + 5)].reshape(-1, 2),
    }


def _compared(
    device: torch.device, layouts: list[Layout], memory: Memory, kind: str, orders: npt.NDArray[np.int64]
) -> Result:
    layout, before = layouts[0], memory.random_bytes(seed=len(orders))
    raw = to_device(before, device)
    slots.copy_slots([(slots.COPIERS[layout], view) for view in memory.views(raw)], orders, to_device)
    wrong = np.count_nonzero(raw.cpu().numpy() != kv.moved(layout, memory, before, orders))
    row = f"{memory.num_heads} heads of {memory.head_size}" if memory.has_heads else "latent vectors"
    case = f"{memory.order}, blocks of {memory.block_size}, {row}"
    name = ", ".join("/".join(filter(None, layout)) for layout in layouts)
    return Result(f"copy of slots, {name}", f"{case}, {kind}", memory.dtype, float(wrong), 0)


def _far(device: torch.device) -> Result:
    """Slots whose bytes lie beyond what 32 bits count, on a GPU with the room."""
    if device.type != "cuda":
        return not_run(FAR, "needs a GPU")
    bytes_of_slot = 2 * FAR_HEAD
    num_blocks = (1 << 32) // (FAR_BLOCK * bytes_of_slot) + 64
    # counting what is not zero takes as much memory again
    if torch.cuda.mem_get_info(device)[0] < 3 * num_blocks * FAR_BLOCK * bytes_of_slot:
        return not_run(FAR, "needs 13 GiB of free memory")
    wrong = num_wrong_bytes(device, num_blocks, far=(1 << 31) // bytes_of_slot + 3)
    return Result(FAR, "bytes beyond 2^31 and 2^32", "fp8", float(wrong), 0)


def num_wrong_bytes(device: torch.device, num_blocks: int, far: int) -> int:
    """Copy the last slot of a cache to its first one, and a near slot to ``far``: bytes that are then wrong.

    The rest of the cache is zero, and must stay so.
    """
    cache = torch.zeros((num_blocks, 1, FAR_BLOCK, 2 * FAR_HEAD), dtype=torch.uint8, device=device)
    last, near = num_blocks * FAR_BLOCK - 1, 7
    written = np.random.default_rng(1).integers(1, 256, (2, 2 * FAR_HEAD), dtype=np.uint8)
    for slot, token in zip((last, near), written, strict=True):
        cache[slot // FAR_BLOCK, 0, slot % FAR_BLOCK] = to_device(token, device)
    orders = np.array([[last, 0], [near, far]])
    slots.copy_slots([(slots.COPIERS["FLASH_ATTN", None], cache)], orders, to_device)
    found = [cache[slot // FAR_BLOCK, 0, slot % FAR_BLOCK].cpu().numpy() for slot in (0, far)]
    num_elsewhere = int(cache.count_nonzero()) - 2 * written.size
    return int(np.count_nonzero(np.stack(found) != written)) + abs(num_elsewhere)
