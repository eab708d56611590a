"""What stops, dies or hangs up around a server: its engine, each of its processes, its clients, its log's reader."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.server.asking import chat, worksheet
from tests.server.conftest import start_server
from tests.server.reading import by_engine, metrics
from tests.server.turnstile import Turnstile

pytestmark = [pytest.mark.server, pytest.mark.timeout(900)]

#: Nothing that has to come may take longer; it is for a busy machine.
LIMIT_S = 120

ASK = chat(worksheet(3))
FORKS = "forkjoin:forks_total"
GONE = "the client hung up, and the request ends with it"


def _until(is_so: Callable[[], bool]) -> bool:
    end = time.monotonic() + LIMIT_S
    while not is_so():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def _processes(server: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return psutil.Process(server.pid).children(recursive=True)


def _named(processes: list[psutil.Process], name: str) -> psutil.Process:
    """The last that vLLM calls so."""
    return [p for p in processes if p.cmdline()[:1] and p.cmdline()[0].startswith(f"VLLM::{name}")][-1]


def _left(processes: list[psutil.Process]) -> list[str]:
    left = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                left.append(" ".join(process.cmdline()[:4]))
    return left


class LogPipe:
    """A named pipe that a server logs to, and its reader."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = path
        self.text = ""
        self._fd: int | None = None
        self._reading: threading.Thread | None = None
        self.read()

    def read(self) -> None:
        """Read from now on what is written."""
        self._fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        self._reading = threading.Thread(target=self._read, args=(self._fd,), daemon=True)
        self._reading.start()

    def close(self) -> None:
        """Read no more: what writes to it gets an error."""
        self._fd = None
        assert self._reading is not None
        self._reading.join()

    def _read(self, fd: int) -> None:
        while self._fd == fd:
            with contextlib.suppress(BlockingIOError):
                self.text += os.read(fd, 1 << 16).decode(errors="replace")
            time.sleep(0.01)
        os.close(fd)


@pytest.fixture(scope="module")
def watched(tmp_path_factory) -> Iterator[tuple[str, subprocess.Popen[bytes], Turnstile, LogPipe]]:
    """A server that is soon neither ready nor healthy, and logs text to a pipe. The last test kills it."""
    folder = tmp_path_factory.mktemp("liveness")
    engine, log = Turnstile(folder / "turnstile"), LogPipe(folder / "log")
    flags = [*engine.flags, "--ready-timeout", "4", "--health-timeout", "16"]
    with start_server(log.path, *flags, env=engine.env) as (address, process):
        yield address, process, engine, log


def test_a_server_is_ready_while_its_engine_answers_and_healthy_somewhat_longer(watched):
    address, process, *_ = watched
    status = lambda path: httpx.get(address + path, timeout=30).status_code  # noqa: E731
    engine = _named(_processes(process), "EngineCore")
    engine.suspend()
    try:
        assert _until(lambda: status("/ready") == 503)
        assert "has not answered for" in httpx.get(f"{address}/ready", timeout=30).json()["reason"]
        assert status("/health") == 200
        assert _until(lambda: status("/health") == 503)
        assert status("/ping") == 503
        families = httpx.get(f"{address}/v1/forkjoin/families", timeout=30)
        assert families.status_code == 503
        assert "expected every engine to answer within" in families.json()["error"]["message"]
    finally:
        engine.resume()
    assert _until(lambda: status("/ready") == 200)
    assert status("/health") == status("/ping") == 200
    assert httpx.post(f"{address}/v1/chat/completions", json=ASK, timeout=LIMIT_S).status_code == 200


def test_a_client_that_hangs_up_is_one_line_in_the_log(watched):
    address, _, engine, log = watched
    batch = {k: v for k, v in ASK.items() if k != "messages"} | {"messages": [ASK["messages"]] * 2}
    bodies = {
        "/v1/chat/completions": [ASK, ASK | {"stream": True}],
        "/v1/chat/completions/batch": [batch],
        "/v1/responses": [{"model": "abacus", "input": ASK["messages"], "temperature": 0}],
    }
    asked = [(path, body) for path, of_path in bodies.items() for body in of_path]
    text = log.text
    asyncio.run(_hang_up_when_forked(address, engine, asked))
    assert _until(lambda: log.text.removeprefix(text).count(GONE) == len(asked))
    assert _until(lambda: metrics(address)["vllm:num_requests_running"] == 0)
    assert "Traceback" not in log.text
    assert log.text.removeprefix(text).count(GONE) == len(asked)


async def _hang_up_when_forked(address: str, engine: Turnstile, asked: list[tuple[str, object]]) -> None:
    num_forks = metrics(address)[FORKS] + len(asked) + 1  # the batch is two
    async with httpx.AsyncClient(timeout=LIMIT_S) as client:
        with engine:
            asking = [asyncio.create_task(client.post(address + path, json=body)) for path, body in asked]
            await engine.until(lambda: metrics(address)[FORKS] == num_forks)
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)


def test_a_server_whose_log_nobody_reads_serves_on_and_logs_again_when_somebody_does(watched):
    address, _, _, log = watched
    log.close()
    for _ in range(3):
        assert httpx.post(f"{address}/v1/chat/completions", json=ASK, timeout=LIMIT_S).status_code == 200
    log.read()
    assert httpx.get(f"{address}/version", timeout=LIMIT_S).status_code == 200
    assert _until(lambda: '"GET /version HTTP/1.1" 200' in log.text)


def test_one_that_logs_json_says_how_much_was_lost(tmp_path):
    log = LogPipe(tmp_path / "log")
    with start_server(log.path, "--log-format", "json") as (address, _):
        log.close()
        for _ in range(3):
            assert httpx.post(f"{address}/v1/chat/completions", json=ASK, timeout=LIMIT_S).status_code == 200
        log.read()
        assert httpx.get(f"{address}/version", timeout=LIMIT_S).status_code == 200
        assert _until(lambda: "GET /version HTTP/1.1" in log.text)
    messages = [json.loads(line)["message"] for line in log.text.splitlines()]
    (lost,) = (i for i, m in enumerate(messages) if re.fullmatch(r"[1-9]\d* lines before this .*", m))
    assert "GET /version HTTP/1.1" in messages[lost + 1]


def test_no_process_outlives_a_server_that_is_killed(watched):
    address, process, *_ = watched
    processes = _processes(process)
    assert _named(processes, "Worker")
    with httpx.stream(
        "POST", f"{address}/v1/chat/completions", json=ASK | {"stream": True}, timeout=LIMIT_S
    ) as told:
        next(told.iter_lines())
        # also of an engine that can do nothing itself
        _named(processes, "EngineCore").suspend()
        process.kill()
    assert _until(lambda: not _left(processes)), _left(processes)


ONE_API_SERVER = ("--data-parallel-size", "2", "--api-server-count", "1")
JSON = ("--log-format", "json")


@pytest.mark.parametrize(
    ("victim", "flags"),
    [
        pytest.param("EngineCore", (), id="engine core"),
        pytest.param("Worker", ("--tensor-parallel-size", "2"), id="one of two workers"),
        pytest.param("APIServer", ("--api-server-count", "2", *JSON), id="one of two API servers"),
        pytest.param("DPCoordinator", ONE_API_SERVER, id="coordinator of two engines"),
    ],
)
def test_a_server_that_logs_to_a_full_disk_starts_and_ends_when_one_of_its_processes_is_killed(victim, flags):
    with start_server(Path("/dev/full"), *flags) as (address, process):
        processes = _processes(process)
        engines = httpx.get(f"{address}/v1/forkjoin/families", timeout=LIMIT_S).json()["engines"]
        numbers = range(2 if "--data-parallel-size" in flags else 1)
        assert [e["engine"] for e in engines] == [*numbers]
        assert by_engine(address, FORKS) == {str(number): 0 for number in numbers}
        body = ASK | {"stream": True, "ignore_eos": True}
        with httpx.stream("POST", f"{address}/v1/chat/completions", json=body, timeout=LIMIT_S) as told:
            lines = told.iter_lines()
            next(lines)
            _named(processes, victim).kill()
            with contextlib.suppress(httpx.TransportError):
                assert not any('"finish_reason":"stop"' in line for line in lines)
        assert process.wait(timeout=LIMIT_S) == 1
        assert _until(lambda: not _left(processes)), _left(processes)
