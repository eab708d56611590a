from __future__ import annotations

import asyncio

from forkjoin_scheduler.policy.backlog import Tenant, Visit
from forkjoin_server.access import preparing
from forkjoin_server.access.preparing import AT_A_TIME, Preparing


async def _settled():
    for _ in range(20):
        await asyncio.sleep(0)


def _crowd(num):
    """So many requests: those that have had their turn, and what ends each."""
    door, begun, ends = Preparing(), [], [asyncio.Event() for _ in range(num)]
    visits = [Visit(Tenant()) for _ in range(num)]

    async def ask(number):
        async with door.of(visits[number]):
            begun.append(number)
            await ends[number].wait()

    return begun, ends, visits, [asyncio.create_task(ask(n)) for n in range(num)]


def test_a_burst_is_made_ready_a_few_at_a_time_in_its_order(monkeypatch):
    monkeypatch.setattr(preparing, "LONGEST_S", 600.0)  # however long this takes

    async def run():
        begun, ends, visits, tasks = _crowd(AT_A_TIME + 3)
        await _settled()
        assert begun == list(range(AT_A_TIME))
        visits[0].decided()  # it is in the engine, and generates
        visits[0].decided()
        await _settled()
        assert begun == list(range(AT_A_TIME + 1))
        ends[1].set()  # it was a 400
        await _settled()
        assert begun == list(range(AT_A_TIME + 2))
        tasks[2].cancel()
        await _settled()
        assert begun == list(range(AT_A_TIME + 3))
        for end in ends:
            end.set()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(run())


def test_who_waits_for_something_else_holds_nobody_up_for_long(monkeypatch):
    monkeypatch.setattr(preparing, "LONGEST_S", 0.0)

    async def run():
        begun, ends, _, tasks = _crowd(3 * AT_A_TIME)
        while len(begun) < 3 * AT_A_TIME:
            await asyncio.sleep(0)
        for end in ends:
            end.set()
        await asyncio.gather(*tasks)

    asyncio.run(run())
