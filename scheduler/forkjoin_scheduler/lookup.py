"""Drafts looked up in what a family has written: the text after the same few tokens, somewhere else.

Threads that do alike work write alike text. What one has written may be a draft of what another is about
to write; it costs nothing to try, for the model verifies drafts anyway.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

#: Tokens at the end of a text by which it is known again.
_LOOKED_AT = 8


class Lookup:
    """The texts of a family, by writer. Tokens after ``min_n`` to ``max_n`` equal ones are drafts.

    >>> lookup = Lookup(2, 3)
    >>> lookup.follow("a", [1, 2, 3, 4])
    >>> lookup.find([9, 2, 3], 5)
    [4]
    """

    def __init__(self, min_n: int, max_n: int) -> None:
        self._lengths = range(max_n, min_n - 1, -1)
        self._texts: dict[Hashable, list[int]] = {}
        #: Where each n-gram stands first and last with a token after it: the text, and that token's place.
        self._first: dict[tuple[int, ...], tuple[list[int], int]] = {}
        self._last: dict[tuple[int, ...], tuple[list[int], int]] = {}

    def follow(self, writer: Hashable, token_ids: Sequence[int], start: int = 0) -> None:
        """``writer`` has written up to ``token_ids``, of which those from ``start`` on are its own.

        Where that does not go on what it wrote before, it begins another text.
        """
        text = self._texts.get(writer, [])
        known = start + len(text)
        tail = text[-_LOOKED_AT:]
        if not text or list(token_ids[known - len(tail) : known]) != tail:
            text, known = [], start
            self._texts[writer] = text
        for token_id in token_ids[known:]:
            at = len(text)
            text.append(token_id)
            for n in self._lengths:
                if n <= at:
                    gram = tuple(text[at - n : at])
                    self._first.setdefault(gram, (text, at))
                    self._last[gram] = text, at

    def find(self, token_ids: Sequence[int], max_drafts: int) -> list[int]:
        """What may follow ``token_ids``: at most so many tokens; none where nothing fits.

        After the most tokens that are the same, and where more is written of it: who writes in step with
        another has nothing to give.
        """
        for n in self._lengths:
            gram = tuple(token_ids[-n:])
            places = [found[gram] for found in (self._last, self._first) if gram in found]
            if places and len(gram) == n:
                text, at = max(places, key=lambda place: min(len(place[0]) - place[1], max_drafts))
                return text[at : at + max_drafts]
        return []
