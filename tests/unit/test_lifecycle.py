from __future__ import annotations

import asyncio
import os
import threading
import time
from types import SimpleNamespace

import pytest

from forkjoin_server.in_flight import FILE, InFlight, shared_with_children
from forkjoin_server.lifecycle import Cut, Lifecycle, announcement


def _state(**server):
    async def check_health():
        return None

    shown = {"enable_log_requests": False, "forkjoin_log_format": "text"}
    args = SimpleNamespace(host=None, port=8000, uds=None, ssl_keyfile=None, **shown)
    stopped: list[float | None] = []
    client = SimpleNamespace(
        check_health=check_health,
        shutdown=lambda timeout=None: stopped.append(timeout),
        model_config=SimpleNamespace(served_model_name="m"),
    )
    server = SimpleNamespace(**{"started": True, "should_exit": False} | server)
    return SimpleNamespace(engine_client=client, server=server, args=args), stopped


def test_a_drain_ends_readiness_at_once_and_waits_for_what_is_in_flight():
    lifecycle = Lifecycle()
    state, stopped = _state()
    asyncio.run(lifecycle.start(state))
    assert asyncio.run(lifecycle.is_ready(state))
    with lifecycle.request():
        drain = threading.Thread(target=state.engine_client.shutdown, kwargs={"timeout": 60})
        drain.start()
        while not lifecycle.is_draining:
            time.sleep(0.001)
        assert not asyncio.run(lifecycle.is_ready(state))
        assert stopped == []
    drain.join(timeout=10)
    assert 50 < stopped[0] <= 60


@pytest.mark.parametrize("timeout", [0, 0.1, None])
def test_a_drain_waits_no_longer_than_its_timeout(timeout):
    lifecycle = Lifecycle()
    state, stopped = _state()
    asyncio.run(lifecycle.start(state))
    with lifecycle.request():
        state.engine_client.shutdown(timeout=timeout)
    assert stopped == [None if timeout is None else 0]


def test_what_a_drain_has_no_time_for_is_cut_before_the_engine_stops():
    async def run():
        lifecycle, told = Lifecycle(), []
        state, stopped = _state()
        await lifecycle.start(state)
        with lifecycle.request():
            shutdown = asyncio.create_task(asyncio.to_thread(state.engine_client.shutdown, timeout=0.1))
            with pytest.raises(Cut):
                async with lifecycle.answering():
                    await asyncio.sleep(60)
            told.append(list(stopped))
        await shutdown
        return told, stopped

    assert asyncio.run(run()) == ([[]], [0])


def test_what_comes_when_a_drains_time_is_up_is_cut_at_once():
    async def run():
        lifecycle = Lifecycle()
        state, _ = _state()
        await lifecycle.start(state)
        await asyncio.to_thread(state.engine_client.shutdown, timeout=0)
        with pytest.raises(Cut):
            async with lifecycle.answering():
                await asyncio.sleep(60)

    asyncio.run(run())


def test_a_request_that_runs_out_of_its_own_time_is_not_cut():
    async def run():
        async with Lifecycle().answering():
            raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        asyncio.run(run())


@pytest.mark.parametrize("server", [{"started": False}, {"should_exit": True}])
def test_a_server_that_has_not_started_or_is_ending_is_not_ready(server):
    state, _ = _state(**server)
    assert not asyncio.run(Lifecycle().is_ready(state))


@pytest.mark.parametrize(
    ("args", "curl"),
    [
        ({}, "curl -sN http://localhost:8000/v1/chat/completions"),
        ({"host": "0.0.0.0"}, "curl -sN http://localhost:8000/v1"),
        ({"host": "::1"}, "curl -sN http://[::1]:8000/v1"),
        ({"host": "h", "ssl_keyfile": "k"}, "curl -sN https://h:8000/v1"),
        ({"uds": "/s"}, "curl -sN --unix-socket /s http://localhost/v1"),
    ],
)
def test_the_announcement_names_the_address_that_the_server_listens_on(args, curl):
    state, _ = _state()
    vars(state.args).update(args)
    assert curl in announcement(state.args, "m")


def test_a_drain_waits_for_what_the_other_api_servers_have_in_flight():
    with shared_with_children():
        mine, others = Lifecycle(), Lifecycle()
    state, stopped = _state()
    asyncio.run(mine.start(state))
    with others.request():
        drain = threading.Thread(target=state.engine_client.shutdown, kwargs={"timeout": 60})
        drain.start()
        while not mine.is_draining:
            time.sleep(0.001)
        assert stopped == []
    drain.join(timeout=10)
    assert 50 < stopped[0] <= 60


def test_api_servers_know_of_each_others_requests_until_the_last_has_ended():
    with shared_with_children():
        first, second, third = (InFlight(os.environ[FILE]) for _ in range(3))
    assert FILE not in os.environ
    with first.request():
        with second.request(), second.request():
            assert third.is_any()
        assert second.is_any()
        assert first.is_any()
    assert not any(p.is_any() for p in (first, second, third))
