"""KV caches in memory, in every layout that the copies know, and where one token's numbers lie in them.

A cache here is bytes on the host. Torch views them as vLLM does, by strides; the reference views them as an
array of the physical order of axes, and finds each number of a token by its index. The two share nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt
import torch

from forkjoin_scheduler.tensors.slots import Layout

Array = npt.NDArray[np.unsignedinteger]

#: The physical order of the axes [layer, block, head, token, content], by vLLM's names (``KVCacheLayout``).
ORDERS = {
    "LBHNC": (0, 1, 2, 3, 4),
    "LBNHC": (0, 1, 3, 2, 4),
    "LHBNC": (0, 2, 1, 3, 4),
    "BLHNC": (1, 0, 2, 3, 4),
    "BLNHC": (1, 0, 3, 2, 4),
    "BHLNC": (1, 2, 0, 3, 4),
}
#: What vLLM views a cache as; one in fp8 holds bytes.
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "fp8": torch.uint8}
#: Bytes around the layers, which no copy may touch.
GUARD = 256


@dataclass(frozen=True)
class Memory:
    """The KV of ``num_layers`` layers in one allocation."""

    order: str
    dtype: str
    block_size: int
    num_heads: int
    head_size: int
    num_layers: int = 2
    num_blocks: int = 7
    #: Whether a layer's view has a dimension of heads: with MLA, which has one, vLLM drops it.
    has_heads: bool = True

    @property
    def shape(self) -> tuple[int, ...]:
        """Layers, blocks, heads, tokens of a block, numbers of a token."""
        return self.num_layers, self.num_blocks, self.num_heads, self.block_size, 2 * self.head_size

    @property
    def item_bytes(self) -> int:
        """Bytes of a number."""
        return int(DTYPES[self.dtype].itemsize)

    def random_bytes(self, seed: int) -> npt.NDArray[np.uint8]:
        """What the memory holds before a copy: any bits, those of NaN among them."""
        size = prod(self.shape) * self.item_bytes + 2 * GUARD
        return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)

    def views(self, raw: torch.Tensor) -> list[torch.Tensor]:
        """The cache of each layer, as vLLM views it: [blocks, heads if any, tokens of a block, content]."""
        order, strides, step = ORDERS[self.order], [0] * 5, 1
        for axis in reversed(order):
            strides[axis], step = step, step * self.shape[axis]
        inside = raw[GUARD:-GUARD].view(DTYPES[self.dtype])
        layers = torch.as_strided(inside, self.shape, strides, inside.storage_offset())
        return list(layers if self.has_heads else layers.squeeze(2))

    def logical(self, raw: npt.NDArray[np.uint8]) -> Array:
        """The same memory for the reference, with the axes in their logical order."""
        order = ORDERS[self.order]
        numbers = raw[GUARD:-GUARD].view(f"u{self.item_bytes}")
        physical = numbers.reshape([self.shape[axis] for axis in order])
        return physical.transpose(np.argsort(order))


def places(layout: Layout, memory: Memory, token: int) -> npt.NDArray[np.int64]:
    """Where in a head's part of a block the K and V of its ``token`` lie, by index through [tokens, content].

    As each backend's kernels have it; written out from what they write, not from the copies.
    """
    size, head_size = memory.block_size, memory.head_size
    i = np.arange(head_size)
    if layout == ("CPU_ATTN", "amx"):  # tiles of 16 rows of pairs: of the head for K, of tokens for V
        keys = (token // 16 * head_size // 2 + i // 2) * 32 + token % 16 * 2 + i % 2
        values = (i // 16 * size // 2 + token // 2) * 32 + i % 16 * 2 + token % 2
        return np.concatenate([keys, size * head_size + values])
    if layout[0] == "CPU_ATTN":  # K by columns, then V by rows
        return np.concatenate([i * size + token, size * head_size + token * head_size + i])
    return token * 2 * head_size + np.arange(2 * head_size)  # K, then V; or a latent vector, then its key


def moved(
    layout: Layout, memory: Memory, raw: npt.NDArray[np.uint8], copies: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint8]:
    """What the memory must hold after ``copies`` [n, 2] of slots, moved one after the other."""
    raw = raw.copy()
    cache, content = memory.logical(raw), 2 * memory.head_size
    for source, destination in copies.tolist():
        (from_block, here), (to_block, there) = (divmod(s, memory.block_size) for s in (source, destination))
        at, to = places(layout, memory, here), places(layout, memory, there)
        token = cache[:, from_block][:, :, at // content, at % content]
        cache[:, to_block][:, :, to // content, to % content] = token
    return raw
