from __future__ import annotations

import pytest

from forkjoin_bench.inputs.script import Compiled, Compiler
from forkjoin_bench.inputs.traces import Family, Fork, Thread
from forkjoin_bench.inputs.words import Words
from forkjoin_scheduler.dialects.files import load
from tests.unit.conftest import ByteTokenizer


@pytest.fixture(scope="session")
def tokenizer() -> ByteTokenizer:
    return ByteTokenizer(list(load("threadweaver").control_tokens))


@pytest.fixture(scope="session")
def words(tokenizer) -> Words:
    return Words(tokenizer)


@pytest.fixture(scope="session")
def compile_(tokenizer):
    return Compiler(tokenizer).compile


@pytest.fixture
def family(compile_) -> Compiled:
    """Two threads, of three and five tokens with their end tags' own."""
    return compile_(small())


@pytest.fixture
def samples(compile_) -> list[Compiled]:
    """Three answers to the prompt of ``family``, in its shape."""
    return [compile_(small(letter, number)) for number, letter in enumerate("uvw")]


def small(opening: str = "x", sample: int | None = None) -> Family:
    fork = Fork((Thread("1", "a", ("pp",)), Thread("2", "b", ("qqqq",))))
    return Family(f"small{'' if sample is None else sample}", "ask:", (opening, fork, "yz"), sample)
