"""Engines that stand still: what is in flight stays in flight, however fast or busy the machine is."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import time
from collections.abc import Callable
from typing import Self

import psutil

from tests.server.replicas import LIMIT_S

#: So long engines go on at a time, and so long what they did may take to reach their clients.
RUN_S, SETTLE_S = 0.05, 0.2


class Standstill:
    """The engine of a server, which stands still in a ``with`` of this, but for what ``until`` lets it do."""

    def __init__(self, server: subprocess.Popen[bytes]) -> None:
        below = psutil.Process(server.pid).children(recursive=True)
        (core,) = [process for process in below if "VLLM::EngineCore" in " ".join(process.cmdline())]
        self._processes = [core, *core.children(recursive=True)]

    def __enter__(self) -> Self:
        self._suspend()
        return self

    def __exit__(self, *_: object) -> None:
        self._resume()

    async def until(self, is_so: Callable[[], bool]) -> None:
        """Let it go on, a few steps at a time, until ``is_so()``."""
        end = time.monotonic() + LIMIT_S
        while not is_so():
            assert time.monotonic() < end, "it did not come to that"
            self._resume()
            time.sleep(RUN_S)  # and nothing here that could make it longer
            self._suspend()
            await asyncio.sleep(SETTLE_S)

    def _suspend(self) -> None:
        for process in self._processes:
            process.suspend()

    def _resume(self) -> None:
        for process in self._processes:
            with contextlib.suppress(psutil.NoSuchProcess):  # killed meanwhile
                process.resume()
