"""What goes wrong around the server while it is under load."""

from __future__ import annotations

import asyncio
import random
import signal
from collections import Counter

import httpx
import psutil

from tests.soak.server import Log

#: How long the engine stands still, and how long nobody reads the log.
STILL_S = 1.0


class Faults:
    """Injects one fault after the other, as chance picks, until it is cancelled."""

    def __init__(self, address: str, engine: psutil.Process, log: Log, rng: random.Random) -> None:
        self._address, self._engine, self._log, self._rng = address, engine, log, rng
        self._kinds = {
            "engine stopped for a second": self._stop_engine,
            "prefix cache reset": self.reset_prefix_cache,
            "running requests evicted": self._evict,
            "log without a reader": self._close_log,
        }
        #: How often each has been injected.
        self.counts: Counter[str] = Counter(dict.fromkeys(self._kinds, 0))

    async def run(self, every_s: float) -> None:
        while True:
            for name in self._rng.sample(list(self._kinds), len(self._kinds)):
                await asyncio.sleep(every_s * self._rng.uniform(0.5, 1.5))
                await self._kinds[name]()
                self.counts[name] += 1

    async def _stop_engine(self) -> None:
        self._engine.send_signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(STILL_S)
        finally:
            self._engine.send_signal(signal.SIGCONT)

    async def _close_log(self) -> None:
        with self._log.closed():
            await asyncio.sleep(STILL_S)

    async def reset_prefix_cache(self) -> None:
        await self._post("/reset_prefix_cache")

    async def _evict(self) -> None:
        await self._post("/reset_prefix_cache?reset_running_requests=true")

    async def _post(self, path: str) -> None:
        async with httpx.AsyncClient(timeout=120) as http:
            (await http.post(self._address + path)).raise_for_status()
