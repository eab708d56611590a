from __future__ import annotations

import asyncio

from forkjoin_server.operate.scrapes import Scrapes


def test_one_scrape_is_written_out_at_a_time_and_all_are_answered_in_turn():
    written, most, answered = 0, 0, []

    async def app(scope, receive, send):
        nonlocal written, most
        written += 1
        most = max(most, written)
        await asyncio.sleep(0)
        written -= 1
        await send({"type": "http.response.start", "n": scope["n"]})

    async def run():
        scrapes = Scrapes()

        async def send(message):
            answered.append(message["n"])

        await asyncio.gather(*(scrapes.answer(app, {"n": n}, None, send) for n in range(20)))

    asyncio.run(run())
    assert most == 1
    assert answered == list(range(20))


def test_a_client_that_does_not_read_its_metrics_holds_up_nobody():
    async def app(scope, receive, send):
        await send({"type": "http.response.start"})

    async def run():
        scrapes, reads = Scrapes(), asyncio.Event()
        answered = asyncio.Event()

        async def stalled(message):
            await reads.wait()

        async def send(message):
            answered.set()

        first = asyncio.create_task(scrapes.answer(app, {}, None, stalled))
        await scrapes.answer(app, {}, None, send)
        assert answered.is_set()
        assert not first.done()
        reads.set()
        await first

    asyncio.run(asyncio.wait_for(run(), 60))


def test_a_scrape_that_fails_ends_its_turn():
    async def fails(scope, receive, send):
        raise ConnectionError

    async def works(scope, receive, send):
        await send({"type": "http.response.start"})

    async def run():
        scrapes, sent = Scrapes(), []

        async def send(message):
            sent.append(message)

        first = asyncio.create_task(scrapes.answer(fails, {}, None, send))
        await scrapes.answer(works, {}, None, send)
        assert isinstance((await asyncio.gather(first, return_exceptions=True))[0], ConnectionError)
        assert len(sent) == 1

    asyncio.run(asyncio.wait_for(run(), 60))
