from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from forkjoin_bench.ports import free_port
from tests.server import unhurried

#: What a server may take to get ready, and to end, on a busy machine.
START_S, END_S = 600, 240


@contextlib.contextmanager
def start_server(
    log: Path, *flags: str, env: dict[str, str] | None = None
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The real server on the embedded model, ready: its address and its process, which SIGTERM must end."""
    with starting_server(log, *flags, env=env) as (address, process):
        _wait_until_ready(process, address, log)
        yield address, process


@contextlib.contextmanager
def starting_server(
    log: Path, *flags: str, env: dict[str, str] | None = None
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The same from its first moment on. It and what it starts are one process group."""
    port = free_port()
    command = [str(Path(sys.executable).parent / "forkjoin"), "serve", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--max-model-len", "4096", "--block-size", "32", "--enforce-eager"]
    defaults = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_LOGGING_LEVEL": "INFO",
        # It hangs up on who was idle for 5 s, and disconnects who asks again in that moment.
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "300",
    }
    env = os.environ | defaults | (env or {})
    env.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
    with log.open("w") as out:
        process = subprocess.Popen(
            [*command, *flags], stdout=out, stderr=out, env=env, start_new_session=True
        )
        try:
            yield f"http://127.0.0.1:{port}", process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=END_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                pytest.fail(f"SIGTERM did not end the server in {END_S} s:\n{_end_of(log)}")


def _end_of(log: Path) -> str:
    """The last lines of a log, if it is a file."""
    return log.read_text()[-4000:] if log.is_file() else f"it logs to {log}"


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """The address of one server for all tests that need nothing special of it; it takes trees."""
    log = tmp_path_factory.mktemp("server") / "log"
    flags = ("--max-continued-tokens", "100000", *unhurried.FLAGS)
    with start_server(log, *flags, env=unhurried.ENV) as (address, _):
        yield address


def _wait_until_ready(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx.get(f"{address}/ready", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    pytest.fail(f"the server did not get ready:\n{_end_of(log)}")


@pytest.fixture(scope="session")
def client(server):
    from openai import OpenAI

    with OpenAI(base_url=f"{server}/v1", api_key="none", timeout=300) as openai:
        yield openai
