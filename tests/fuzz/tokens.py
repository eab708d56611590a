"""A tokenizer that is fast and can be worked out by hand."""

from __future__ import annotations

import re
from collections.abc import Sequence

#: What the chat template of the fuzzed model writes: before a user's first turn, and between turns.
TURNS = ("<B>", "<U>", "<A>")
#: Ids from here on are tags; those below are characters.
FIRST_TAG = 0x110000


class FuzzTokenizer:
    """One id a character, and one for each of ``tags``."""

    def __init__(self, tags: Sequence[str]) -> None:
        self._ids = {tag: FIRST_TAG + i for i, tag in enumerate(tags)}
        self._texts = _Texts({i: tag for tag, i in self._ids.items()})
        longest_first = sorted(tags, key=len, reverse=True)
        self._parts = re.compile("|".join([*map(re.escape, longest_first), "(?s:.)"]))

    def encode(self, text: str) -> list[int]:
        return [self._ids.get(part) or ord(part) for part in self._parts.findall(text)]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(self._texts.__getitem__, ids))

    def token_id(self, token: str) -> int | None:
        return self._ids.get(token) or (ord(token) if len(token) == 1 else None)

    def turns(self) -> tuple[str, str, str] | None:
        return TURNS


class _Texts(dict[int, str]):
    """The text of each id: a tag's, or the character. Most of what fuzzing takes is looking these up."""

    def __missing__(self, token_id: int) -> str:
        return self.setdefault(token_id, chr(token_id))
