"""Jobs: KV that is computed beside the decoding, by requests whose one sample is dropped.

A job is a generator. It yields a ``PrefillRequest`` (these tokens, starting from that KV) and is sent the
blocks that hold them. Three things need it: the tokens that close a stitched thread, a stitched
context that lost its blocks and is recomputed (``stitching.py``), and threads of a re-prefill
join that are prefilled while their siblings still decode (``ahead.py``).

Blocks of a job are in the name of its fill's request, or in ``KVJob.unclaimed_blocks``; a job that loses its
fill to preemption is started again from nothing. Invariant: whatever way a job ends, ``unclaimed_blocks`` is
empty and no request of its is left.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field

from vllm.v1.core.kv_cache_utils import BlockHash
from vllm.v1.request import Request

from forkjoin_scheduler.families.stitch import Offsets
from forkjoin_scheduler.vllm_seam.cache import kv
from forkjoin_scheduler.vllm_seam.live import LiveFamily


@dataclass(frozen=True)
class PrefillRequest:
    """The KV of ``token_ids``: from ``start``, or sharing the first ``num_shared`` tokens of ``source``.

    ``num_needed``: how many of these it can't compute. ``is_linear``: whether it may be found by, and taken
    from, vLLM's prefix cache. ``known_hashes``: of its first blocks, where they are known already.
    """

    token_ids: list[int]
    start: kv.HeldBlocks | kv.Stitched | None = None
    source: str | kv.HeldBlocks | None = None
    num_shared: int = 0
    num_needed: int = 0
    offsets: Offsets = ((0, 0),)
    paths: Offsets = ((0, 0),)
    is_linear: bool = True
    known_hashes: Sequence[BlockHash] = ()


Work = Generator[PrefillRequest, kv.HeldBlocks, None]


@dataclass(eq=False)
class KVJob:
    """One generator at work. ``make`` starts it again, with nothing of its blocks left."""

    live: LiveFamily
    make: Callable[[KVJob], Work]
    work: Work | None = None
    fill: PrefillRequest | None = None
    request: Request | None = None
    #: Blocks that the generator has been sent and not handed on yet.
    unclaimed_blocks: list[kv.HeldBlocks] = field(default_factory=list)
    #: Of the blocks of its last fill.
    last_hashes: Sequence[BlockHash] = ()

    def take(self, held: kv.HeldBlocks) -> kv.HeldBlocks:
        """Hand on ``held``: the caller owns it then."""
        self.unclaimed_blocks.remove(held)
        return held
