"""What a family's machine may ask of the simulated engine (``machine/world.py``)."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from forkjoin_bench.simulator.replica.sequence import State
from forkjoin_bench.simulator.replica.spoken import TOKENIZER
from forkjoin_scheduler.dialects.tokenizer import Tokenizer
from forkjoin_scheduler.families.family import Branch
from forkjoin_scheduler.families.pruner import Pruner
from forkjoin_scheduler.families.vote import Vote

if TYPE_CHECKING:
    from forkjoin_bench.simulator.replica.core import Core
    from forkjoin_bench.simulator.replica.sequence import Sequence


class CountedWorld:
    """The sequences of one family, whose tokens are counted: all of them are 0. No vote, no pruning."""

    max_model_len = sys.maxsize
    eos_ids: frozenset[int] = frozenset()

    def __init__(self, core: Core, sequences: dict[Branch, Sequence]) -> None:
        self._core = core
        self._sequences = sequences

    @property
    def tokenizer(self) -> Tokenizer:
        return TOKENIZER

    def now(self) -> float:
        return self._core.now

    def context(self, branch: Branch) -> list[int]:
        return [0] * self._sequences[branch].tokens

    def num_computed(self, branch: Branch) -> int:
        return self._sequences[branch].kv.computed

    def is_running(self, thread: Branch) -> bool:
        return thread in self._sequences

    def is_standing(self, branch: Branch) -> bool:
        return self._sequences[branch].state is State.PARKED

    def holds_kv(self, thread: Branch) -> bool:
        return bool(self._sequences[thread].kv.blocks)

    def free_kv(self) -> float:
        return self._core.pool.num_free / self._core.pool.num_blocks

    def pruner(self, name: str, vote: Vote) -> Pruner | None:
        return None

    def blame(self, policy: str, error: BaseException) -> None:
        raise error
