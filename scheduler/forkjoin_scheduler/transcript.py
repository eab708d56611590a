"""The linear transcript: threads run side by side, a stock client reads them in outline order.

The first unfinished thread streams live, the later ones are held back until their turn, so that
what is released, concatenated, is the text of the joined context, whatever order they ran in.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

Piece = TypeVar("Piece")


@dataclass
class LinearTranscript(Generic[Piece]):
    """One fork's threads in outline order; ``headers[i]`` opens thread i.

    >>> t = LinearTranscript([["h0"], ["h1"]])
    >>> t.start(), t.push(1, ["b"]), t.push(0, ["a"]), t.end(1), t.end(0)
    (['h0'], [], ['a'], [], ['h1', 'b'])
    """

    headers: list[list[Piece]]
    _held: dict[int, list[Piece]] = field(default_factory=dict)
    _ended: set[int] = field(default_factory=set)
    _open: int = 0
    _last: int | None = None

    def start(self) -> list[Piece]:
        """Release the first header."""
        return list(self.headers[0])

    def push(self, position: int, pieces: list[Piece]) -> list[Piece]:
        """Take what thread ``position`` produced; return what may be released now."""
        if position == self._open:
            return pieces
        self._held.setdefault(position, []).extend(pieces)
        return []

    def cut(self, position: int) -> None:
        """The transcript ends in thread ``position``: nothing behind it is ever released."""
        self._last = position

    def end(self, position: int) -> list[Piece]:
        """Thread ``position`` produces no more; return what may be released now."""
        self._ended.add(position)
        released: list[Piece] = []
        last = len(self.headers) - 1 if self._last is None else self._last
        while self._open in self._ended and self._open < last:
            self._open += 1
            released += self.headers[self._open] + self._held.pop(self._open, [])
        return released
