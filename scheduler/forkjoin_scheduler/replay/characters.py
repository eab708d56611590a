"""A tokenizer of no model: one id for each control token of a dialect, and one for each other character."""

from __future__ import annotations

import re
from collections.abc import Iterable

#: After all characters.
_FIRST_ID = 0x110000
#: What stands for a chat template's turns where there is none: nothing that a transcript could have.
_TURNS = ("\ue000begin\ue000", "\ue000user\ue000", "\ue000assistant\ue000")


class Characters:
    """Encodes and decodes text, ``control_tokens`` as one id each."""

    def __init__(self, control_tokens: Iterable[str]) -> None:
        self._ids = {token: _FIRST_ID + i for i, token in enumerate(dict.fromkeys(control_tokens))}
        self._tokens = {i: token for token, i in self._ids.items()}
        longest_first = sorted(self._ids, key=len, reverse=True)
        self._pattern = re.compile("|".join([*map(re.escape, longest_first), r"[\s\S]"]))

    def encode(self, text: str) -> list[int]:
        """One id a control token, one a character between them."""
        return [self._ids.get(part) or ord(part) for part in self._pattern.findall(text)]

    def decode(self, ids: list[int]) -> str:
        """The text of ``ids``."""
        return "".join(self._tokens.get(i) or chr(i) for i in ids)

    def token_id(self, token: str) -> int | None:
        """The id of a control token or a character."""
        return self._ids.get(token) or (ord(token) if len(token) == 1 else None)

    def turns(self) -> tuple[str, str, str] | None:
        """Stand-ins: which turns a model writes only its chat template says."""
        return _TURNS
