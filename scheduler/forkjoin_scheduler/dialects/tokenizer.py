"""What the decisions need of a tokenizer."""

from __future__ import annotations

from typing import Protocol


class Tokenizer(Protocol):
    """What the decisions need of a tokenizer."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: list[int]) -> str: ...

    def token_id(self, token: str) -> int | None:
        """The id of ``token``, or None unless the vocabulary holds it as one token."""

    def turns(self) -> tuple[str, str, str] | None:
        """What the chat template writes before a user's first turn, and between turns.

        That is between an assistant's and a user's, then the other way round. None without a chat
        template.
        """
