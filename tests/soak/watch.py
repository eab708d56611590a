"""Memory and file descriptors of processes over time, and whether they grow."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import psutil

MIB = 2**20
#: So much of the time is warm-up: pools fill, code is first run, buffers reach their size.
WARM_UP = 0.4


@dataclass
class Watch:
    """Samples of each process: seconds, resident memory in MiB, file descriptors."""

    processes: Mapping[str, psutil.Process]
    samples: dict[str, list[tuple[float, float, int]]] = field(default_factory=lambda: defaultdict(list))

    async def run(self, every_s: float = 1.0) -> None:
        """Sample until cancelled."""
        begin = time.monotonic()
        while True:
            self.sample(time.monotonic() - begin)
            await asyncio.sleep(every_s)

    def sample(self, at: float) -> None:
        for name, process in self.processes.items():
            self.samples[name].append((at, process.memory_info().rss / MIB, process.num_fds()))

    def memory(self, name: str) -> list[tuple[float, float]]:
        """What was resident after the warm-up: (seconds, MiB)."""
        return [(at, mib) for at, mib, _ in after_warm_up(self.samples[name])]


def after_warm_up(samples: Sequence[tuple[float, float, int]]) -> list[tuple[float, float, int]]:
    return [s for s in samples if s[0] >= WARM_UP * samples[-1][0]]


def slope(points: Sequence[tuple[float, float]]) -> float:
    """What the least-squares line through ``points`` rises by per unit of the first coordinate."""
    n = len(points)
    mean_x, mean_y = sum(x for x, _ in points) / n, sum(y for _, y in points) / n
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0


def growth(points: Sequence[tuple[float, float]]) -> float:
    """What that line rises by from the first to the last of ``points``."""
    return slope(points) * (points[-1][0] - points[0][0])
