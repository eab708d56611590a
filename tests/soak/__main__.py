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
from tests.soak.memory import Rest, cpu_s, in_use
from tests.soak.questions import chat
from tests.soak.server import Log, processes, served
from tests.soak.traffic import LIMIT_S, Soaked, learn, settle
from tests.soak.watch import Watch

#: How many requests are under way at a time; more than the engine has room for.
NUM_CLIENTS = 24
#: Seconds between faults, on average.
FAULT_EVERY_S = 6
#: Seconds in which an idle server's connections are closed, on an idle machine.
SETTLED_S = 3
#: Shares of the time, after each of which all clients wait until nothing is under way. The first is warm-up.
PARTS = (0.5, 0.25, 0.25)


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
            found = asyncio.run(soak(address, first, log, given.minutes * 60, given.seed))
        except psutil.NoSuchProcess as gone:
            print(f"{gone}: a process of the server has ended", "FAILED", sep="\n")
            return 1
    problems = report.problems(found)
    print(report.table(found), *problems, sep="\n", flush=True)
    print("FAILED" if problems else "OK")
    return 1 if problems else 0


async def soak(address: str, first: psutil.Process, log: Log, seconds: float, seed: int) -> report.Found:
    running = processes(first)
    watch, rests = Watch(running), list[Rest]()
    async with _client(address) as http:
        soaked = Soaked(address, http, random.Random(seed))
        await learn(soaked)
    fds_before = await _idle_fds(running)
    faults, cpu_before = Faults(address, running["engine"], log, random.Random(seed)), cpu_s(running)
    async with _client(address) as soaked.http:
        watching, took = asyncio.create_task(watch.run()), 0.0
        for share in PARTS:
            soaked.rng = random.Random(seed)  # so that what is asked later has been asked before
            took += await _under_load(soaked, faults, seconds * share)
            idle = await _until_idle(soaked)
            await faults.reset_prefix_cache()
            await settle(soaked)
            used, taken = await in_use(running, log.file.parent), cpu_s(running) - cpu_before
            rests.append(Rest(soaked.num_sent, used, taken))
            print(f"{took:.0f} s: {report.rest_line(rests[-1])}", flush=True)
        await _end(watching)
    return report.Found(
        soaked.outcomes, soaked.num_sent, soaked.num_compared, faults.counts, watch, rests, fds_before,
        await _idle_fds(running, fds_before), idle, log.text, took, log.goes_on,
    )  # fmt: skip


async def _under_load(soaked: Soaked, faults: Faults, seconds: float) -> float:
    """Let all clients ask for so many seconds; the seconds until they had their answers."""
    begin = time.monotonic()
    injecting = asyncio.create_task(faults.run(FAULT_EVERY_S))
    await asyncio.gather(*(_ask_until(soaked, begin + seconds) for _ in range(NUM_CLIENTS)))
    await _end(injecting)
    return time.monotonic() - begin


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


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


async def _idle_fds(
    running: dict[str, psutil.Process], before: dict[str, int] | None = None
) -> dict[str, int]:
    """The fewest descriptors of each process within some seconds: connections take a moment to be closed.

    More than a moment on a busy machine: while there are more than ``before``, for a minute.
    """
    begin, fewest = time.monotonic(), {name: p.num_fds() for name, p in running.items()}
    while (age_s := time.monotonic() - begin) < SETTLED_S or (
        before is not None and age_s < 60 and any(fewest[name] > before[name] for name in running)
    ):
        fewest = {name: min(fewest[name], p.num_fds()) for name, p in running.items()}
        await asyncio.sleep(0.1)
    return fewest


if __name__ == "__main__":
    sys.exit(main())
