"""Who waits and has begun, in the order of the engine's ``BegunQueue`` (``vllm_seam/starts/queues.py``)."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator
from itertools import count

from forkjoin_bench.simulator.replica.sequence import Sequence

#: Whether it has no KV, its family, whether it is a fill, its name's length, its name, and which came first.
_Rank = tuple[bool, int, bool, int, str, int]


class BegunQueue:
    """Sequences that have begun and wait: those with KV first, then those of the oldest family."""

    def __init__(self) -> None:
        self._ranked: list[tuple[_Rank, Sequence]] = []
        self._numbers = count()

    def append(self, sequence: Sequence) -> None:
        """Let ``sequence`` wait in its turn."""
        name = sequence.branch.request_id
        rank = (
            not sequence.kv.computed,
            sequence.family.number,
            sequence.is_fill,
            len(name),
            name,
            next(self._numbers),
        )
        insort(self._ranked, (rank, sequence))

    #: The same: its rank says when it is its turn.
    appendleft = append

    def popleft(self) -> Sequence:
        """Take the first out. Raises IndexError if there is none."""
        return self._ranked.pop(0)[1]

    def remove(self, sequence: Sequence) -> None:
        """Take ``sequence`` out. Raises ValueError if it does not wait here."""
        del self._ranked[[s for _, s in self._ranked].index(sequence)]

    def __getitem__(self, index: int) -> Sequence:
        return self._ranked[index][1]

    def __iter__(self) -> Iterator[Sequence]:
        return (sequence for _, sequence in self._ranked)

    def __len__(self) -> int:
        return len(self._ranked)
