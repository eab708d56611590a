from __future__ import annotations

import pytest


class ByteTokenizer:
    """One id a byte, and one for each of the tags; worked out by hand."""

    def __init__(self, tags: list[str]) -> None:
        self.tags = tags

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        while text:
            tag = next((t for t in self.tags if text.startswith(t)), None)
            ids.append(256 + self.tags.index(tag) if tag else ord(text[0]))
            text = text[len(tag) if tag else 1 :]
        return ids

    def decode(self, ids: list[int]) -> str:
        return "".join(self.tags[i - 256] if i >= 256 else chr(i) for i in ids)

    def token_id(self, token: str) -> int | None:
        return 256 + self.tags.index(token) if token in self.tags else None


@pytest.fixture
def dialect():
    from forkjoin_scheduler.dialect import load

    return load("threadweaver")


@pytest.fixture
def tokenizer(dialect):
    return ByteTokenizer(list(dialect.control_tokens))


@pytest.fixture
def byte_tokenizer():
    return ByteTokenizer
