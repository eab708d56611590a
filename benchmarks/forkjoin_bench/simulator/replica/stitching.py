"""Stitched joins on counted blocks."""

from __future__ import annotations

from forkjoin_bench.simulator.replica.core import Core
from forkjoin_bench.simulator.replica.sequence import Kv, Sequence, State


class Stitching:
    """Puts threads' KV together. Owns the blocks that are moved from, until their step has run."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._moving: dict[Sequence, list[Kv]] = {}

    def stitch(self, parent: Sequence, num_joined: int) -> None:
        """Put the threads' KV together in their own blocks; if some of it was lost all is recomputed."""
        core, held = self._core, parent.held
        parent.held, parent.is_stitched = {}, True
        core.drop(parent.kv)
        if len(held) < len(parent.threads):
            for kv in held.values():
                core.drop(kv)
            return
        parent.kv = held.pop(0)
        parent.kv.computed = parent.tokens + num_joined
        num_missing = core.num_blocks(parent.kv.computed) - len(parent.kv.blocks)
        first = parent.tokens // core.engine.block_size  # before it are the shared ones
        for kv in held.values():
            own = kv.blocks[first:]
            taken = own[: max(num_missing, 0)]
            parent.kv.blocks += taken
            kv.blocks[first:] = own[len(taken) :]
            num_missing -= len(taken)
        self._moving[parent] = list(held.values())

    def moved(self) -> None:
        """The step has run: what was moved from is free."""
        for parent in [p for p in self._moving if p in self._core.running or p.state is not State.WAITING]:
            self.drop(parent)

    def drop(self, parent: Sequence) -> None:
        """Give back what is moved from for ``parent``."""
        for kv in self._moving.pop(parent, []):
            self._core.drop(kv)
