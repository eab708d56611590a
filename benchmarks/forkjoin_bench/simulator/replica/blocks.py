"""KV blocks: counted references, and vLLM's prefix cache, in which free blocks are found until reused."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from itertools import chain

_NAMELESS = 0


class BlockPool:
    """Blocks by number. Free ones are reused the longest free first, nameless ones before them.

    A full block may get a name, which says what KV it holds; it is found under it as long as it is
    not reused.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._refs = [0] * num_blocks
        self._names = [_NAMELESS] * num_blocks
        #: Several blocks may hold the same: each can be found while those before it are reused.
        self._by_name: dict[int, dict[int, None]] = {}

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    def take(self) -> int:
        """A free block, for its only holder. Raises KeyError if there is none."""
        block, _ = self._free.popitem(last=False)
        if name := self._names[block]:
            del self._by_name[name][block]
            if not self._by_name[name]:
                del self._by_name[name]
            self._names[block] = _NAMELESS
        self._refs[block] = 1
        return block

    def share(self, blocks: Sequence[int]) -> None:
        """One more holder of ``blocks``."""
        for block in blocks:
            if not self._refs[block]:
                del self._free[block]
            self._refs[block] += 1

    def give_back(self, blocks: Sequence[int]) -> None:
        """One holder less; the tail is reused first."""
        for block in reversed(blocks):
            self._refs[block] -= 1
            if not self._refs[block]:
                self._free[block] = None
                if not self._names[block]:
                    self._free.move_to_end(block, last=False)

    def name(self, block: int, name: int) -> None:
        """Say what a full block holds, unless that is said already."""
        if not self._names[block]:
            self._by_name.setdefault(name, {})[block] = None
            self._names[block] = name

    def find(self, names: Sequence[int]) -> list[int]:
        """The blocks of the longest prefix of ``names`` that is there."""
        found = []
        for name in names:
            blocks = self._by_name.get(name)
            if not blocks:
                break
            found.append(next(iter(blocks)))
        return found

    def num_freed_with(self, tables: Iterable[Sequence[int]]) -> int:
        """Blocks that return to the pool when the holders of these ``tables`` let go: nobody else's."""
        return sum(num == self._refs[block] for block, num in Counter(chain.from_iterable(tables)).items())

    def num_unheld(self, blocks: Sequence[int]) -> int:
        """How many of ``blocks`` nobody holds."""
        return sum(not self._refs[block] for block in blocks)
