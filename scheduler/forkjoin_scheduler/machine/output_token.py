"""One token of a transcript."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from msgspec import Struct


class OutputToken(Struct, frozen=True, gc=False):
    """One token of the transcript, with its row of logprobs (as the engine has it) if it was sampled."""

    token_id: int
    logprobs: Any = None


def injected(token_ids: Iterable[int]) -> list[OutputToken]:
    """Tokens that the engine wrote, not the model."""
    return list(map(OutputToken, token_ids))
