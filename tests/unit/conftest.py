from __future__ import annotations

import sys

import pytest


@pytest.fixture(autouse=True, scope="module")
def _no_engine_was_here():
    """An engine that ran in this process lets vLLM read the environment no more."""
    if envs := sys.modules.get("vllm.envs"):
        envs.disable_envs_cache()


class ByteTokenizer:
    """One id a byte, and one for each of the tags; worked out by hand."""

    def __init__(self, tags: list[str], turns: tuple[str, str, str] | None = None) -> None:
        self.tags = tags
        self._turns = turns

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

    def turns(self) -> tuple[str, str, str] | None:
        return self._turns


class PieceTokenizer:
    """One id a byte of UTF-8, and one for each of ``pieces``, of which the longest is taken."""

    def __init__(self, pieces: list[str]) -> None:
        self._pieces = [bytes([i]) for i in range(256)] + [p.encode() for p in pieces]

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        rest = text.encode()
        while rest:
            piece = max((p for p in self._pieces if rest.startswith(p)), key=len)
            ids.append(self._pieces.index(piece))
            rest = rest[len(piece) :]
        return ids

    def decode(self, ids: list[int]) -> str:
        return b"".join(self._pieces[i] for i in ids).decode(errors="replace")

    def token_id(self, token: str) -> int | None:
        ids = self.encode(token)
        return ids[0] if len(ids) == 1 else None

    def turns(self) -> tuple[str, str, str] | None:
        return None


@pytest.fixture
def dialect():
    from forkjoin_scheduler.dialects.files import load

    return load("threadweaver")


@pytest.fixture
def tokenizer(dialect):
    return ByteTokenizer(list(dialect.control_tokens))


@pytest.fixture
def byte_tokenizer():
    return ByteTokenizer


@pytest.fixture
def piece_tokenizer():
    return PieceTokenizer


@pytest.fixture
def make_dialect():
    """A dialect of a few fields: what is not given is the plainest that can be."""
    from forkjoin_scheduler.dialects.dialect import Dialect

    def make(**fields):
        plain = {"name": "mine", "source": "a test", "trigger": "<F>", "thread": {"header": "<T>{n}:"}}
        if "outline" not in fields:
            plain["width"] = 2
        if fields.get("join", {}).get("kind") == "stitch":
            fields["join"] = {"text": "<J>"} | fields["join"]
        return Dialect.model_validate(plain | fields)

    return make
