"""The server that is overloaded, from its start to its end."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from forkjoin_bench.overload.plan import Plan
from forkjoin_bench.ports import free_port
from forkjoin_scheduler.errors import UsageError
from forkjoin_server.start.configuration import EMBEDDED_MODEL, EMBEDDED_NAME

START_S, STOP_S, IDLE_S = 900, 60, 60
#: What an idle server has none of.
_GAUGES = (
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "forkjoin:threads_running",
)


@contextlib.contextmanager
def serving(plan: Plan, log: Path) -> Iterator[tuple[int, int]]:
    """A server as ``plan`` wants it, ready: its port, and the pid of its first process.

    Raises UsageError with the end of its log if it does not start.
    """
    port = free_port()
    env = os.environ | {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    with log.open("w") as out:
        process = subprocess.Popen(  # noqa: S603 - our own command
            _command(plan, port), stdout=out, stderr=out, env=env, process_group=0
        )
        try:
            _wait_until_ready(process, port, log)
            yield port, process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_S)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _command(plan: Plan, port: int) -> list[str]:
    argv = ["--host", "127.0.0.1", "--port", str(port), "--max-model-len", "4096", "--block-size", "32"]
    argv += ["--enforce-eager", "--num-gpu-blocks-override", str(plan.num_blocks), *plan.flags]
    if plan.is_stock:
        model = [str(EMBEDDED_MODEL), "--served-model-name", EMBEDDED_NAME]
        return [sys.executable, "-m", "forkjoin_bench.vllm_seam.stock", "serve", *model, *argv]
    return [sys.executable, "-m", "forkjoin_server.cli", "serve", *argv]


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    end = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError, http.client.HTTPException):
            if _get(port, "/health")[0] == 200:
                return
        time.sleep(0.25)
    raise UsageError(f"the server did not start:\n{log.read_text(errors='replace')[-4000:]}")


def what_is_left(port: int) -> dict[str, float]:
    """What the server still runs, lets wait or holds blocks for, when that is nothing or a minute over."""
    end = time.monotonic() + IDLE_S
    while True:
        left = dict.fromkeys(_GAUGES, 0.0)
        for line in _get(port, "/metrics")[1].decode().splitlines():
            name = line.partition("{")[0].partition(" ")[0]
            if name in left:
                left[name] += float(line.rpartition(" ")[2])
        if not any(left.values()) or time.monotonic() > end:
            return left
        time.sleep(0.2)


def _get(port: int, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()
