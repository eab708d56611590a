"""Where the KV of one token lies in each layout that this package knows, and how to move it.

A layer's cache is a view [kernel blocks, KV heads, tokens of a block, content], with MLA one without heads.
What a backend keeps in a block is its own affair, so a layout is known by the backend's name (on CPUs: and
the kernels'), and what is not named here is refused at start: a wrong guess would not crash, it would answer
wrongly.

A token keeps its position where its slot changes, so no key is rotated again: a copy of its bytes is
exact, also in fp8, whose scales are the layer's.

Invariant (pinned by tests/engine/test_layouts.py): a copy moves K and V of exactly the ordered slots, in
every layer once, whatever the strides.

The GPU layouts are tested on views made by vLLM's own code, in CPU memory. They have never met a GPU:
``python -m forkjoin_scheduler.verify`` runs them on one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from forkjoin_scheduler.tensors.together import slots_at_once, together
from forkjoin_scheduler.tensors.tokens import Int64s

#: (cache view, source slots, destination slots on its device): moves them in place. The view is that of a
#: layer, or has a dimension of layers after the first (``together.py``).
Copier = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]

#: Copies an array of the host's to a device.
ToDevice = Callable[[Int64s, torch.device], torch.Tensor]

#: (backend name, kernels' name on CPUs)
Layout = tuple[str, str | None]


def _copy_rows(cache: torch.Tensor, source: torch.Tensor, destination: torch.Tensor) -> None:
    """What a token has in one row: for each head its K and V, with MLA its latent vector and its key."""
    size = cache.shape[-2]
    cache[destination // size, ..., destination % size, :] = cache[source // size, ..., source % size, :]


def _copy_columns(cache: torch.Tensor, source: torch.Tensor, destination: torch.Tensor) -> None:
    """Each head's K of a block as [head size, block size], after it V as [block size, head size]."""
    size, content = cache.shape[-2:]
    halves = cache.view(*cache.shape[:-2], 2, size * content // 2)
    keys = halves[..., 0, :].unflatten(-1, (content // 2, size))
    values = halves[..., 1, :].unflatten(-1, (size, content // 2))
    from_block, from_offset = source // size, source % size
    to_block, to_offset = destination // size, destination % size
    keys[to_block, ..., to_offset] = keys[from_block, ..., from_offset]
    values[to_block, ..., to_offset, :] = values[from_block, ..., from_offset, :]


def _copy_tiles(cache: torch.Tensor, source: torch.Tensor, destination: torch.Tensor) -> None:
    """What AMX multiplies by: tiles whose rows are 16 pairs, each head's K of a block before its V.

    K as [tokens / 16, head size / 2, 16 tokens, 2 of the head], V as [head size / 16, tokens / 2, 16 of
    the head, 2 tokens]. A pair is 4 bytes: two of bf16, which is all that vLLM takes AMX for.
    """
    size, content = cache.shape[-2:]
    halves = cache.view(*cache.shape[:-2], 2, size * content // 2)
    keys = halves[..., 0, :].unflatten(-1, (size // 16, content // 4, 16, 2))
    values = halves[..., 1, :].unflatten(-1, (content // 32, size // 2, 16, 2))
    from_block, at = source // size, source % size
    to_block, to = destination // size, destination % size
    keys[to_block, ..., to // 16, :, to % 16, :] = keys[from_block, ..., at // 16, :, at % 16, :]
    values[to_block, ..., to // 2, :, to % 2] = values[from_block, ..., at // 2, :, at % 2]


#: vec and vec16 write alike. The kernels of other machines (neon, rvv, vsx, vxe) are not in this
#: machine's build, so what they write could not be looked at.
COPIERS: dict[Layout, Copier] = {
    ("CPU_ATTN", "amx"): _copy_tiles,
    ("CPU_ATTN", "vec"): _copy_columns,
    ("CPU_ATTN", "vec16"): _copy_columns,
    ("FLASH_ATTN", None): _copy_rows,
    ("FLASHINFER", None): _copy_rows,
    ("TRITON_ATTN", None): _copy_rows,
    # MLA. Those for GPUs all write by one function of vLLM's, which no test can call without a GPU.
    ("AMX_MLA", None): _copy_rows,
    ("CUTLASS_MLA", None): _copy_rows,
    ("FLASHINFER_MLA", None): _copy_rows,
    ("FLASHMLA", None): _copy_rows,
    ("FLASH_ATTN_MLA", None): _copy_rows,
    ("TRITON_MLA", None): _copy_rows,
}


def slot_copier(backend_name: str, isa: str | None) -> Copier | None:
    """What moves slots in a layer's cache, or None if the layout is not known."""
    return COPIERS.get((backend_name, isa))


def copy_slots(
    caches: Iterable[tuple[Copier, torch.Tensor]], slot_copies: Int64s, to_device: ToDevice
) -> None:
    """Obey ``slot_copies`` ([n, 2]) in the caches of all layers; those that share one move it once.

    Layers that lie in one allocation are moved by one copy, or by several of as many slots as may be read at
    once: what one writes no other reads. Queued on the current stream, without waiting for it, if
    ``to_device`` does not wait.
    """
    if not len(slot_copies):
        return
    # Unpickled arrays may be read-only, which torch does not take: .copy().
    host = slot_copies.T.copy()
    slots: torch.Tensor | None = None
    for copier, cache in together(caches, len(slot_copies)):
        if slots is None:
            slots = to_device(host, cache.device)
        for source, destination in zip(*(of.split(slots_at_once(cache)) for of in slots), strict=True):
            copier(cache, source, destination)
