"""What every system is to the traffic: it answers a family, and its engine's steps are on record."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

from forkjoin_bench.inputs.script import Compiled


@dataclass
class Answer:
    """What a client saw of one request. Times are CLOCK_MONOTONIC's, as in the engines' records."""

    family: str
    began: float
    ended: float = 0.0
    #: When text came in, each time.
    arrivals: list[float] = field(default_factory=list)
    is_right: bool = False
    error: str | None = None

    @property
    def seconds(self) -> float:
        """Time to answer."""
        return self.ended - self.began

    @property
    def first_s(self) -> float | None:
        """Time to the first token, if the answer was streamed."""
        return self.arrivals[0] - self.began if self.arrivals else None

    @property
    def gaps_s(self) -> list[float]:
        """Between tokens, as they came in."""
        return [b - a for a, b in zip(self.arrivals, self.arrivals[1:], strict=False)]


class CpuSeconds(NamedTuple):
    """CPU seconds of all processes of a server, and of the one that answers over HTTP."""

    all: float
    front: float


class Engine(Protocol):
    """An engine that runs, with its scheduler's record."""

    @property
    def start_s(self) -> float | None:
        """Seconds that it took to start, None where the client's process was one of its own."""

    @property
    def cpu_s(self) -> CpuSeconds | None:
        """What its processes have taken so far, None where the client's process is one of them."""

    @property
    def num_blocks(self) -> int:
        """KV blocks that it has."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def reset_prefix_cache(self) -> None:
        """Empty the prefix cache. Raises RuntimeError if blocks are still held."""

    def take_steps(self) -> list[dict[str, object]]:
        """The steps recorded since this was called last."""


class System(Protocol):
    """One way to have a family answered."""

    name: str

    @property
    def engine(self) -> Engine:
        """What answers; systems may share one."""

    async def text_of(self, family: Compiled, answer: Answer) -> str:
        """The transcript after the prompt; notes in ``answer`` when text came in."""


@runtime_checkable
class GroupSystem(System, Protocol):
    """A system that may be asked once for several samples of a prompt."""

    async def texts_of(self, samples: Sequence[Compiled], answers: Sequence[Answer]) -> list[str]:
        """A transcript for each of ``samples``, which have one prompt, the first numbered 0.

        Notes in ``answers`` when text came in, and may note their ends.
        """


async def ask(system: System, family: Compiled, timeout_s: float) -> Answer:
    """Have ``system`` answer ``family``. Whatever goes wrong is noted in the answer."""
    answer = Answer(family.family.name, time.monotonic())
    try:
        async with asyncio.timeout(timeout_s):
            text = await system.text_of(family, answer)
        _judge(answer, text, family)
    except Exception as error:  # one request that fails must not end the run: it is reported
        answer.error = f"{type(error).__name__}: {error}"
    answer.ended = time.monotonic()
    return answer


async def ask_group(system: GroupSystem, samples: Sequence[Compiled], timeout_s: float) -> list[Answer]:
    """Have ``system``, asked once, answer with ``samples``. All answers note what goes wrong."""
    began = time.monotonic()
    answers = [Answer(sample.family.name, began) for sample in samples]
    try:
        async with asyncio.timeout(timeout_s):
            texts = await system.texts_of(samples, answers)
        for answer, text, sample in zip(answers, texts, samples, strict=True):
            _judge(answer, text, sample)
    except Exception as error:  # as above
        for answer in answers:
            answer.error = f"{type(error).__name__}: {error}"
    for answer in answers:
        answer.ended = answer.ended or time.monotonic()
    return answers


def _judge(answer: Answer, text: str, family: Compiled) -> None:
    """Note in ``answer`` whether ``text`` is the trace's."""
    answer.is_right = text == family.text
    if not answer.is_right:
        answer.error = f"wrote {_difference(text, family.text)}"


def _difference(got: str, wanted: str) -> str:
    """Where two texts part."""
    pairs = enumerate(zip(got, wanted, strict=False))
    same = next((i for i, (a, b) in pairs if a != b), min(len(got), len(wanted)))
    before = got[max(same - 40, 0) : same]
    return f"{got[same : same + 40]!r} after {before!r}, not {wanted[same : same + 40]!r}"
