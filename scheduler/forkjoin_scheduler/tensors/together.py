"""Layers whose KV one copy can reach: those that lie at equal distances in one allocation.

vLLM puts the layers of a KV cache group there. A copy for each layer is six kernels a layer, most of whose
time is their launch; one copy for all is six in all, and writes the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import TypeVar

import torch

#: The most that a copy reads at once. It has memory of its own, of which vLLM's profile of the device knows
#: nothing.
MOST_BYTES = 1 << 25

Key = TypeVar("Key")


def together(
    caches: Iterable[tuple[Key, torch.Tensor]], num_slots: int
) -> Iterator[tuple[Key, torch.Tensor]]:
    """Views that have each of ``caches`` once, the layers of one key, shape and allocation in one view.

    A cache is [blocks, ..., tokens of a block, content]; a view of several has their layers after the blocks.
    ``num_slots``: tokens that a copy reads of each layer; a view has no more layers than ``MOST_BYTES`` hold.
    """
    alike: dict[tuple[object, ...], list[tuple[Key, torch.Tensor]]] = {}
    seen: set[int] = set()
    for key, cache in caches:
        if cache.data_ptr() not in seen:
            seen.add(cache.data_ptr())
            place = (cache.untyped_storage().data_ptr(), cache.dtype, cache.shape, cache.stride())
            alike.setdefault((key, *place), []).append((key, cache))
    for layers in alike.values():
        key = layers[0][0]
        yield from ((key, view) for view in _views([cache for _, cache in layers], num_slots))


def slots_at_once(view: torch.Tensor) -> int:
    """Of how many tokens a copy may read what they have in ``view``, in all its layers; one at least."""
    bytes_of_slot: int = view[0].numel() // view.shape[-2] * view.element_size()
    return max(MOST_BYTES // bytes_of_slot, 1)


def _views(layers: list[torch.Tensor], num_slots: int) -> Iterator[torch.Tensor]:
    """``layers`` in as few views as can be."""
    layers = sorted(layers, key=lambda cache: cache.storage_offset())
    first, *others = layers
    offsets = [cache.storage_offset() for cache in layers]
    distances = {b - a for a, b in pairwise(offsets)}
    if not others or len(distances) > 1:
        yield from layers
        return
    most = max(slots_at_once(first) // num_slots, 1)
    for start in range(0, len(layers), most):
        num = min(most, len(layers) - start)
        yield first.as_strided(
            (first.shape[0], num, *first.shape[1:]),
            (first.stride(0), *distances, *first.stride()[1:]),
            offsets[start],
        )
