"""What is planned while the tokens of a step are booked (``hearing.py``), and done at its end."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Swap:
    """``token_ids`` take the place of what stands behind the first ``keep`` tokens of a context."""

    keep: int
    token_ids: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens of the context behind it."""
        return self.keep + len(self.token_ids)
