from __future__ import annotations

import asyncio
import multiprocessing
import os
import threading
import time
from types import SimpleNamespace

import pytest

from forkjoin_server.operate import engine_watch
from forkjoin_server.operate import lifecycle as lifecycle_module
from forkjoin_server.operate.in_flight import FILE, InFlight, shared_with_children
from forkjoin_server.operate.lifecycle import Cut, Lifecycle, announcement


class Engine:
    """vLLM's engine client, as far as a server looks at it: it answers while ``answers``."""

    def __init__(self):
        self.answers, self.errored, self.output_handler = True, False, None
        #: Whether a question was put to it that it does not answer.
        self.is_silent = False
        self.engine_core, self.resources = self, SimpleNamespace(engine_dead=False)
        self.outputs_queue: asyncio.Queue[object] = asyncio.Queue()
        self.model_config = SimpleNamespace(served_model_name="m")
        self.stopped: list[float | None] = []

    async def call_utility_all_async(self, method):
        while not self.answers:
            self.is_silent = True
            await asyncio.sleep(0.001)
        self.is_silent = False
        return [False]

    async def get_output_async(self):
        return await self.outputs_queue.get()

    def shutdown(self, timeout=None):
        self.stopped.append(timeout)


def _state(**server):
    shown = {"enable_log_requests": False, "forkjoin_log_format": "text", "forkjoin_no_playground": False}
    limits = {"forkjoin_ready_timeout": 15.0, "forkjoin_health_timeout": 120.0}
    args = SimpleNamespace(host=None, port=8000, uds=None, ssl_keyfile=None, **shown, **limits)
    engine = Engine()
    server = SimpleNamespace(**{"started": True, "should_exit": False} | server)
    return SimpleNamespace(engine_client=engine, server=server, args=args), engine.stopped


@pytest.fixture(autouse=True)
def often(monkeypatch):
    """Engines are asked often, and nothing ends this process."""
    monkeypatch.setattr(engine_watch, "INTERVAL_S", 0.01)
    monkeypatch.setattr(lifecycle_module, "end_within", lambda seconds: None)


@pytest.fixture
def clock(monkeypatch):
    """What engines are watched by: it stands still but where a test moves it."""
    now = [1000.0]
    monkeypatch.setattr(engine_watch, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_a_drain_ends_readiness_at_once_and_waits_for_what_is_in_flight():
    lifecycle = Lifecycle()
    state, stopped = _state()
    asyncio.run(lifecycle.start(state))
    assert lifecycle.not_ready(state) is None
    with lifecycle.request():
        drain = threading.Thread(target=state.engine_client.shutdown, kwargs={"timeout": 600})
        drain.start()
        while not lifecycle.is_draining:
            time.sleep(0.001)
        assert lifecycle.not_ready(state) == "the server is shutting down"
        assert stopped == []
    drain.join(timeout=120)
    assert 450 < stopped[0] <= 600


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
                    await asyncio.sleep(600)
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
                await asyncio.sleep(600)

    asyncio.run(run())


def test_a_request_that_runs_out_of_its_own_time_is_not_cut():
    async def run():
        async with Lifecycle().answering():
            raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        asyncio.run(run())


@pytest.mark.parametrize(
    ("server", "reason"),
    [({"started": False}, "the server is starting"), ({"should_exit": True}, "the server is shutting down")],
)
def test_a_server_that_has_not_started_or_is_ending_is_not_ready(server, reason):
    async def run():
        state, _ = _state()
        lifecycle = Lifecycle()
        await lifecycle.start(state)
        vars(state.server).update(server)
        assert lifecycle.not_ready(state) == reason

    asyncio.run(run())


async def _answering(lifecycle):
    async with lifecycle.answering():
        await asyncio.sleep(600)


async def _until(is_so):
    async with asyncio.timeout(120):
        while not is_so():
            await asyncio.sleep(0.001)


def test_a_server_is_ready_only_while_its_engine_answers_and_healthy_somewhat_longer(clock):
    async def run():
        lifecycle = Lifecycle()
        state, _ = _state()
        state.engine_client.answers = False
        starting = asyncio.create_task(lifecycle.start(state))
        await _until(lambda: lifecycle.not_ready(state) == "the engine has not answered yet")
        state.engine_client.answers = True
        await starting
        assert lifecycle.not_ready(state) is None

        state.engine_client.answers = False
        await _until(lambda: state.engine_client.is_silent)
        clock[0] += 15
        assert lifecycle.not_ready(state) is None
        clock[0] += 1
        assert lifecycle.not_ready(state) == "the engine has not answered for 16 s"
        assert lifecycle.unhealthy(state) is None
        clock[0] += 105
        assert lifecycle.unhealthy(state) == "the engine has not answered for 121 s"
        state.engine_client.answers = True
        await _until(lambda: lifecycle.not_ready(state) is None)
        assert lifecycle.unhealthy(state) is None
        assert not state.server.should_exit

    asyncio.run(run())


def test_a_server_is_not_ready_while_nobody_takes_what_its_engine_says(clock):
    async def run():
        lifecycle = Lifecycle()
        state, _ = _state()
        await lifecycle.start(state)
        engine = state.engine_client
        for _ in range(3):
            engine.outputs_queue.put_nowait("output")
        clock[0] += 16
        await _until(lambda: lifecycle.not_ready(state) == "no output of the engine was taken for 16 s")
        await engine.get_output_async()
        await _until(lambda: lifecycle.not_ready(state) is None)

    asyncio.run(run())


@pytest.mark.parametrize(
    "die",
    [
        pytest.param(lambda engine: vars(engine).update(errored=True), id="output handler"),
        pytest.param(
            lambda engine: (
                vars(engine).update(errored=True),
                vars(engine.resources).update(engine_dead=True),
            ),
            id="engine",
        ),
    ],
)
def test_a_server_whose_engine_has_died_is_neither_ready_nor_healthy_and_ends_with_status_1(die):
    async def run():
        lifecycle = Lifecycle()
        state, stopped = _state()
        await lifecycle.start(state)
        answering = asyncio.create_task(_answering(lifecycle))
        await asyncio.sleep(0)
        die(state.engine_client)
        assert lifecycle.not_ready(state).endswith("has died")
        assert lifecycle.unhealthy(state).endswith("has died")
        with pytest.raises(Cut):
            await answering
        await _until(lambda: state.server.should_exit)
        with pytest.raises(SystemExit, match="1"):
            state.engine_client.shutdown(timeout=30)
        assert stopped == [0]
        state.engine_client.shutdown()  # of its destructor
        assert stopped == [0, None]

    asyncio.run(run())


def test_the_operator_may_have_a_server_stay_whose_engine_has_died(monkeypatch):
    monkeypatch.setenv("VLLM_KEEP_ALIVE_ON_ENGINE_DEATH", "1")

    async def run():
        lifecycle = Lifecycle()
        state, _ = _state()
        await lifecycle.start(state)
        state.engine_client.errored = True
        await lifecycle._watching
        assert (state.server.should_exit, lifecycle.is_draining) == (False, False)
        assert lifecycle.not_ready(state) is not None

    asyncio.run(run())


def test_a_server_ends_when_a_process_that_vllm_does_not_watch_has_died():
    """As the coordinator of data parallel engines behind one API server."""

    async def run():
        process = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,))
        process.start()
        lifecycle = Lifecycle()
        state, _ = _state()
        await lifecycle.start(state)
        process.kill()
        await _until(lambda: state.server.should_exit)
        assert lifecycle.unhealthy(state) == f"{process.name} (pid {process.pid}) has died with status -9"

    asyncio.run(run())


def test_vllms_output_handler_does_not_hear_of_the_end_of_an_engine_that_a_drain_ends():
    async def run():
        lifecycle = Lifecycle()
        state, stopped = _state()
        await lifecycle.start(state)
        handler = asyncio.create_task(asyncio.sleep(600))
        state.engine_client.output_handler = handler
        await asyncio.to_thread(state.engine_client.shutdown, timeout=0)
        with pytest.raises(asyncio.CancelledError):
            await handler
        assert stopped == [0]

    asyncio.run(run())


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


@pytest.mark.parametrize(
    ("args", "is_named"),
    [({}, True), ({"forkjoin_no_playground": True}, False), ({"uds": "/s"}, False)],
    ids=["default", "switched_off", "unix_socket"],
)
def test_the_announcement_names_the_playground_where_a_browser_finds_it(args, is_named):
    state, _ = _state()
    vars(state.args).update(args)
    assert ("http://localhost:8000/playground" in announcement(state.args, "m")) is is_named


def test_a_drain_waits_for_what_the_other_api_servers_have_in_flight():
    with shared_with_children():
        mine, others = Lifecycle(), Lifecycle()
    state, stopped = _state()
    asyncio.run(mine.start(state))
    with others.request():
        drain = threading.Thread(target=state.engine_client.shutdown, kwargs={"timeout": 600})
        drain.start()
        while not mine.is_draining:
            time.sleep(0.001)
        assert stopped == []
    drain.join(timeout=120)
    assert 450 < stopped[0] <= 600


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
