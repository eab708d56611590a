from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import cache
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
from msgspec import to_builtins

from tests.engine import renamed
from training.prompts import make_worksheet
from training.task import Worksheet

#: What bf16 rounding may move a logprob by; what saw other text differs by far more.
BF16_NATS = 0.75


@pytest.fixture(scope="session")
def engine():
    """One engine for all tests that need nothing special of it."""
    from tests.engine.harness import Engine

    return Engine(num_gpu_blocks_override=5000)


@pytest.fixture(scope="session")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The model that speaks a dialect."""
    return cache(lambda name: renamed.model_for(name, tmp_path_factory.mktemp))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each look at the clock take a millisecond: a run is the same on every machine."""
    from forkjoin_scheduler.vllm_seam.starts import thread_pacer

    ticks = count()
    monkeypatch.setattr(thread_pacer, "time", SimpleNamespace(monotonic=lambda: next(ticks) / 1e3))


@pytest.fixture(autouse=True)
def nothing_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test every block, slot and queue entry is back."""
    yield
    if "engine" in request.fixturenames:
        engine = request.getfixturevalue("engine")
        engine.drain()
        assert engine.snapshot() == engine.baseline


def worksheets(num: int, *, seed: int = 7, max_long: int = 6) -> list[Worksheet]:
    rng = random.Random(seed)
    return [
        make_worksheet(
            rng, num_long=1 + i % max_long, num_short=i % 3 if i % max_long < 4 else 0, held_out=True
        )
        for i in range(num)
    ]


@pytest.fixture
def events(monkeypatch):
    """The events of a kind that an engine's families emitted during the test."""
    from forkjoin_scheduler.vllm_seam.live import LiveFamily

    emitted: list[dict] = []
    emit = LiveFamily.emit

    def heard(self, event):
        emitted.append(to_builtins(event))
        emit(self, event)

    monkeypatch.setattr(LiveFamily, "emit", heard)
    return lambda kind: [e for e in emitted if e["type"] == kind]
