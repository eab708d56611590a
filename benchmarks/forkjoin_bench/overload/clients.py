"""The clients, all at once."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any

import aiohttp

from forkjoin_bench.overload.never_reads import NeverReads
from forkjoin_bench.overload.plan import Plan, big_body, body
from forkjoin_bench.overload.told import REFUSALS, Told


async def warm_up(plan: Plan, port: int) -> None:
    """One request of each kind: vLLM compiles some of its kernels when they are first needed."""
    async with _session(port) as session:
        for warm in (body(plan), big_body(plan) | {"max_tokens": plan.max_tokens}):
            told = await _ask(session, warm, None)
            assert told.outcome == "finished", told


async def ask_all(plan: Plan, port: int, is_over: Callable[[], None]) -> list[Told]:
    """Send all that ``plan`` says. What is not over in its ``limit_s`` is cut off, and lost.

    ``is_over`` is called for each request when it is.
    """
    rng = random.Random(1)
    num_reading = plan.requests - plan.stalled
    cancelled = {n: rng.randint(1, 20) for n in rng.sample(range(num_reading), plan.cancelled)}
    stalled = [NeverReads(plan, port) for _ in range(plan.stalled)]
    async with _session(port) as session:
        asked = [_ask(session, body(plan), cancelled.get(n)) for n in range(num_reading)]
        tasks = [asyncio.create_task(one) for one in asked]
        for task in tasks:
            task.add_done_callback(lambda _: is_over())
        done, late = await asyncio.wait(tasks, timeout=plan.limit_s)
        for task in late:
            task.cancel()
        told = [task.result() for task in done] + [Told() for _ in late]
        await asyncio.gather(*late, return_exceptions=True)
    for client in stalled:
        told.append(client.hang_up())
        is_over()
    return told


def _session(port: int) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        f"http://127.0.0.1:{port}",
        connector=aiohttp.TCPConnector(limit=0, force_close=True),
        timeout=aiohttp.ClientTimeout(total=None),
        read_bufsize=1 << 20,
    )


async def _ask(session: aiohttp.ClientSession, asked: dict[str, Any], cancel_after: int | None) -> Told:
    """Stream one answer; hang up after ``cancel_after`` of its events."""
    told, began = Told(), time.monotonic()
    try:
        async with session.post("/v1/chat/completions", json=asked) as response:
            told.status = response.status
            if response.status in REFUSALS:
                told.outcome, told.over_s = "refused", time.monotonic() - began
                retry_after = response.headers.get("retry-after")
                told.retry_after_s = None if retry_after is None else float(retry_after)
            elif response.status == 200:
                await _read(response, told, began, cancel_after)
            else:
                told.outcome = "failed"
    except (aiohttp.ClientError, OSError):
        told.outcome = "failed"
    return told


async def _read(response: aiohttp.ClientResponse, told: Told, began: float, cancel_after: int | None) -> None:
    """Read a stream to its end. It has failed unless it finishes, and says that it is done."""
    num_events, has_finished, told.outcome = 0, False, "failed"
    async for line in response.content:
        if not line.startswith(b"data: "):
            continue
        num_events += 1
        told.first_s = told.first_s or time.monotonic() - began
        has_finished |= b'"finish_reason":"' in line.replace(b'": "', b'":"')
        told.has_forked |= b'"forkjoin"' in line
        if cancel_after is not None and num_events >= cancel_after:
            told.outcome = "cancelled"
            return
        if line.startswith(b"data: [DONE]") and has_finished:
            told.outcome = "finished"
    told.over_s = time.monotonic() - began
