from __future__ import annotations

import asyncio
from types import SimpleNamespace

from forkjoin_server.http.turns import give_turns


def test_a_handler_that_lags_behind_lets_others_have_a_turn_before_each_output():
    order = []

    async def handle(core):
        for _ in range(4):
            order.append(await core.get_output_async())

    async def others():
        while len(order) < 8:
            order.append("other")
            await asyncio.sleep(0)

    async def run():
        outputs: asyncio.Queue[int] = asyncio.Queue()
        for number in range(4):  # all are there already
            outputs.put_nowait(number)
        core = SimpleNamespace(get_output_async=outputs.get)
        give_turns(SimpleNamespace(engine_core=core))
        await asyncio.gather(handle(core), others())

    asyncio.run(run())
    assert order == ["other", 0, "other", 1, "other", 2, "other", 3]
