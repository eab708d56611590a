"""The linear transcript: threads run side by side, a stock client reads them in outline order.

The first unfinished thread streams live, the later ones are held back until their turn, so that
what is released, concatenated, is the text of the joined context, whatever order they ran in.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Generic, TypeVar

Piece = TypeVar("Piece")


class Transcript(Generic[Piece]):
    """The text of one branch: its pieces and, where it forked, the transcripts of its threads.

    >>> root = Transcript()
    >>> first, second = root.fork([["h0"], ["h1"]])
    >>> second.push(["b"]); first.push(["a"]); root.release()
    ['h0', 'a']
    >>> first.close(); root.push(["joined"]); second.close(); root.release()
    ['h1', 'b', 'joined']
    """

    def __init__(self, pieces: Iterable[Piece] = ()) -> None:
        self._parts: deque[Piece | Transcript[Piece]] = deque(pieces)
        self._is_closed = False
        self._is_last = False

    def push(self, pieces: Iterable[Piece]) -> None:
        """Append ``pieces``."""
        self._parts.extend(pieces)

    def fork(self, headers: Iterable[Iterable[Piece]]) -> list[Transcript[Piece]]:
        """Append one transcript for each thread, in outline order, opened by its header."""
        threads = [Transcript(header) for header in headers]
        self._parts.extend(threads)
        return threads

    def close(self) -> None:
        """Nothing will be appended any more: what follows may be released."""
        self._is_closed = True

    def cut(self) -> None:
        """The whole transcript ends in this branch: nothing after it is ever released."""
        self._is_last = True

    def release(self) -> list[Piece]:
        """Take out what may be read now."""
        released: list[Piece] = []
        while self._parts:
            part = self._parts[0]
            if isinstance(part, Transcript):
                released += part.release()
                if not part.is_done:
                    break
                self._parts.popleft()
            else:
                released.append(part)
                self._parts.popleft()
        return released

    @property
    def is_done(self) -> bool:
        """Whether all of it has been released and what follows it may be."""
        return self._is_closed and not self._is_last and not self._parts
