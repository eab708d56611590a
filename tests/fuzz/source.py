"""What a fuzzed input is made of: bytes, read as choices.

A target reads its input from a ``Source``, so that the same target takes random bytes, those that hypothesis
shrinks and those that a coverage-guided fuzzer mutates. Where the bytes are used up all choices are the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

#: Parts of texts: what JSON, YAML, regular expressions and templates treat otherwise than a letter.
PARTS = (
    "a", "", " ", "\n", "1", "0", "-1", "{n}", "{", "}", "{{", "{title}", "{user}", "\\", "(", ")", "[", "]", ".*", "(?P<result>a)",
    "(?P<number>[0-9]+)", "a{1000}", "|", "\ud800", "\udfff", "\U0001f600", "é", "\x00", "\u2028", "null", "true", "~", "!!python/object", "&a",
    "*a", "<", ">", "</", '"', "'", ":", ": ", "- ", "#", "\t", "\r", "<Thread>", "<|end|>", "data: ", "\n\n", "[DONE]", "1e999", "9" * 30, "x" * 300,
)  # fmt: skip


class Source:
    """Reads choices from ``data``."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def is_empty(self) -> bool:
        """Whether all bytes have been read."""
        return self._at >= len(self._data)

    def below(self, limit: int) -> int:
        """A number from 0 to ``limit``, exclusive; at most 65,536."""
        value = self._byte()
        if limit > 256:
            value = value * 256 + self._byte()
        return value % limit

    def choice(self, options: Sequence[T]) -> T:
        return options[self.below(len(options))]

    def one_in(self, number: int) -> bool:
        """True about once in ``number`` times, never where the bytes are used up."""
        return self.below(number) == number - 1

    def text(self, max_parts: int = 4) -> str:
        return "".join(self.choice(PARTS) for _ in range(self.below(max_parts + 1)))

    def json(self, depth: int = 2) -> object:
        """A value that JSON can say."""
        kind = self.below(10 if depth else 8)
        if kind < 3:
            return self.text()
        if kind == 8:
            return [self.json(depth - 1) for _ in range(self.below(4))]
        if kind == 9:
            return {self.text(): self.json(depth - 1) for _ in range(self.below(4))}
        return self.choice(SCALARS)

    def rest(self) -> bytes:
        """All bytes that are left."""
        rest, self._at = self._data[self._at :], len(self._data)
        return rest

    def _byte(self) -> int:
        value = self._data[self._at] if self._at < len(self._data) else 0
        self._at += 1
        return value


SCALARS = (
    None, True, False, 0, 1, -1, 2, 3, 16, 50, 255, 256, 257, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, float("inf"), float("nan"),
)  # fmt: skip
