"""The one traffic generator: sends families to a system as a load says, and collects its answers."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

from forkjoin_bench.inputs.script import Compiled
from forkjoin_bench.systems.base import Answer, GroupSystem, System, ask, ask_group


@dataclass(frozen=True)
class Load:
    """So many families, and how they come.

    ``concurrency`` at a time, each followed by the next (closed loop); or, with ``within_s``, all at
    moments drawn once within so many seconds, however many that makes at a time. ``num_plain``
    requests that do not fork come among them. With ``is_group`` the families are samples of one prompt, which
    a system that can is asked for at once.
    """

    name: str
    num_families: int
    concurrency: int = 1
    within_s: float | None = None
    num_plain: int = 0
    is_group: bool = False

    def order(self, families: Sequence[Compiled], plain: Sequence[Compiled]) -> list[Compiled]:
        """Which requests, in which order; the same for every system."""
        mixed = [*families[: self.num_families], *plain[: self.num_plain]]
        if self.num_plain:
            random.Random(self.name).shuffle(mixed)
        return mixed

    def delays(self, num: int) -> list[float]:
        """When each of ``num`` requests comes, in seconds from the start."""
        if self.within_s is None:
            return [0.0] * num
        rng = random.Random(self.name)
        return sorted(rng.uniform(0, self.within_s) for _ in range(num))


@dataclass(frozen=True)
class Outcome:
    """The answers to a load, and the seconds from the first request to the last answer."""

    answers: list[Answer]
    wall_s: float


async def drive(system: System, load: Load, requests: Sequence[Compiled], timeout_s: float) -> Outcome:
    """Send ``requests`` to ``system`` as ``load`` says; a request that fails is an answer with an error."""
    slots = asyncio.Semaphore(len(requests) if load.within_s is not None else load.concurrency)

    async def one(request: Compiled, delay: float) -> Answer:
        await asyncio.sleep(delay)
        async with slots:
            return await ask(system, request, timeout_s)

    began = time.monotonic()
    if load.is_group and isinstance(system, GroupSystem):
        of_group = await ask_group(system, requests, timeout_s)
        return Outcome(of_group, time.monotonic() - began)
    delays = load.delays(len(requests))
    answers = await asyncio.gather(*map(one, requests, delays))
    return Outcome(list(answers), time.monotonic() - began)
