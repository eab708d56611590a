"""``python -m tests.soak --minutes 20``: mixed traffic with faults on the real server, then what it came to.

Prints tables of what was sent and how it ended, of memory and descriptors; the exit status is 1 if anything
was not as it must be (``report.py``), each such thing a line.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import httpx
import psutil

from tests.server.reading import metrics
from tests.soak import report
from tests.soak.faults import Faults
from tests.soak.questions import chat
from tests.soak.server import Log, processes, served
from tests.soak.traffic import LIMIT_S, Soaked, learn
from tests.soak.watch import Watch

#: How many requests are under way at a time; more than the engine has room for.
NUM_CLIENTS = 24
#: Seconds between faults, on average.
FAULT_EVERY_S = 6


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description="soak the real server")
    parser.add_argument("--minutes", type=float, default=20, help="how long (20)")
    parser.add_argument("--seed", type=int, default=0, help="of what chance picks (0)")
    given = parser.parse_args()
    # So that whoever ends this ends the server, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    print(f"the server's log: {folder}/log", flush=True)
    with served(folder) as (address, first, log):
        try:
            found = asyncio.run(soak(address, first, log, given.minutes * 60, random.Random(given.seed)))
        except psutil.NoSuchProcess as gone:
            print(f"{gone}: a process of the server has ended", "FAILED", sep="\n")
            return 1
    problems = report.problems(found)
    print(report.table(found), *problems, sep="\n", flush=True)
    print("FAILED" if problems else "OK")
    return 1 if problems else 0


async def soak(
    address: str, first: psutil.Process, log: Log, seconds: float, rng: random.Random
) -> report.Found:
    running = processes(first)
    watch = Watch(running)
    async with _client(address) as http:
        soaked = Soaked(address, http, rng)
        await learn(soaked)
    fds_before = await _idle_fds(running)
    faults, begin = Faults(address, running["engine"], log, rng), time.monotonic()
    async with _client(address) as soaked.http:
        around = [asyncio.create_task(faults.run(FAULT_EVERY_S)), asyncio.create_task(watch.run())]
        await asyncio.gather(*(_ask_until(soaked, begin + seconds) for _ in range(NUM_CLIENTS)))
        took = time.monotonic() - begin
        for task in around:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        idle = await _until_idle(soaked)
    return report.Found(
        soaked.outcomes, soaked.num_sent, soaked.num_compared, faults.counts, watch, fds_before,
        await _idle_fds(running), idle, log.text, took, log.goes_on,
    )  # fmt: skip


def _client(address: str) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=NUM_CLIENTS)
    headers = {"content-type": "application/json"}
    return httpx.AsyncClient(base_url=address, timeout=LIMIT_S, limits=limits, headers=headers)


async def _ask_until(soaked: Soaked, end: float) -> None:
    while time.monotonic() < end:
        await soaked.one()


async def _until_idle(soaked: Soaked, limit_s: float = 90) -> dict[str, float]:
    """The gauges that must be 0, when they are or ``limit_s`` after all clients have their answers."""
    end = time.monotonic() + limit_s
    while True:
        # vLLM's gauges move when its engine takes a step.
        await soaked.http.post(
            "/v1/chat/completions", json=chat("x", max_tokens=1, forkjoin={"enabled": False})
        )
        seen = metrics(soaked.address)
        idle = {name: seen[name] for name in report.IDLE}
        if not any(idle.values()) or time.monotonic() > end:
            return idle


async def _idle_fds(running: dict[str, psutil.Process], settled_s: float = 3) -> dict[str, int]:
    """The fewest descriptors of each process within some seconds: connections take a moment to be closed."""
    end, fewest = time.monotonic() + settled_s, {name: p.num_fds() for name, p in running.items()}
    while time.monotonic() < end:
        fewest = {name: min(fewest[name], p.num_fds()) for name, p in running.items()}
        await asyncio.sleep(0.1)
    return fewest


if __name__ == "__main__":
    sys.exit(main())
