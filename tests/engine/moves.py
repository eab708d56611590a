"""What may befall a scheduler between two steps, beside what clients ask for: each as vLLM would do it."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

from vllm.v1.core.sched.interface import PauseState

#: Behind any step: blocks that are kept until then are not given back by vLLM.
_NEVER = 1 << 60


class Moves:
    """Takes blocks away, evicts families, pauses the scheduler; each for some steps, then lets it be."""

    def __init__(self, scheduler: Any, chance: random.Random) -> None:
        self._scheduler = scheduler
        self._chance = chance
        #: Steps until the blocks that were taken are given back, and until the pause ends.
        self._steals_for = self._pauses_for = 0
        #: How often each was made.
        self.made: Counter[str] = Counter()

    def move(self, chance: float, *, is_idle: bool) -> None:
        """Let time pass, and with a ``chance`` make a move. ``is_idle``: nothing ran in the last step."""
        scheduler = self._scheduler
        self._steals_for -= 1
        self._pauses_for -= 1
        if self._steals_for <= 0 or is_idle:
            self._give_back()
        if self._pauses_for <= 0 and scheduler.pause_state is not PauseState.UNPAUSED:
            scheduler.set_pause_state(PauseState.UNPAUSED)
        if self._chance.random() < chance:
            self._chance.choice([self._steal, self._steal, self._evict, self._pause])()

    def stop(self) -> None:
        """Let it be."""
        self._give_back()
        self._scheduler.set_pause_state(PauseState.UNPAUSED)

    def _steal(self) -> None:
        """Leave a few free blocks, or none: whoever needs more preempts."""
        self._give_back()
        pool = self._scheduler.kv_cache_manager.block_pool
        num = pool.get_num_free_blocks() - self._chance.choice([0, 0, 1, 3])
        if num > 0:
            self._scheduler.deferred_frees.append((_NEVER, pool.get_new_blocks(num)))
            self._steals_for = self._chance.choice([1, 2, 5])
            self.made["blocks taken away"] += 1

    def _give_back(self) -> None:
        while self._scheduler.deferred_frees:
            _, blocks = self._scheduler.deferred_frees.pop()
            self._scheduler.kv_cache_manager.block_pool.free_blocks(blocks)

    def _evict(self) -> None:
        """Take a family's blocks back, as where nothing runs and nothing could be started."""
        families = list(self._scheduler._core.live.values())
        if families:
            self._scheduler._eviction.evict(self._chance.choice(families))
            self.made["families evicted"] += 1

    def _pause(self) -> None:
        state = self._chance.choice([PauseState.PAUSED_NEW, PauseState.PAUSED_ALL])
        self._scheduler.set_pause_state(state)
        self._pauses_for = self._chance.choice([1, 3, 8])
        self.made["pauses"] += 1
