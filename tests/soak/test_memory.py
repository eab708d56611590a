"""Whether a process leaks, seen from outside: by what it has in use at rest."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

import psutil
import pytest

from tests.soak.memory import Rest, environment, in_use
from tests.soak.report import leaked

#: Answers each line that it reads, with much garbage; and keeps what its argument says.
SERVER = """
import ctypes, sys
keep, kept = eval(sys.argv[1]), []
for line in sys.stdin:
    cycle = [bytes(5000) for _ in range(200)]
    cycle.append(cycle)
    kept.append(keep())
    print("done", flush=True)
"""
KIB_10 = {
    "one_object": "lambda: bytes(10 * 1024)",
    "small_objects": "lambda: [bytes(67) for _ in range(100)]",
    "a_cycle": "lambda: (a := [bytes(10 * 1024)], a.append(a))",
    "in_c": "lambda: ctypes.CDLL(None).malloc(10 * 1024)",
}


def rests_of(folder, keep):
    command = [sys.executable, "-c", SERVER, keep]
    with subprocess.Popen(
        command,
        env=os.environ | environment(folder),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        rests = []
        for num_requests in (100, 250):
            for _ in range(num_requests - (rests[-1].num_requests if rests else 0)):
                server.stdin.write("\n")
                server.stdin.flush()
                assert server.stdout.readline() == "done\n"
            used = asyncio.run(in_use({"server": psutil.Process(server.pid)}, folder))
            rests.append(Rest(num_requests, used, 0.0))
        server.stdin.close()
    return rests


@pytest.mark.parametrize("keep", KIB_10.values(), ids=KIB_10)
def test_a_leak_of_ten_kib_a_request_is_seen(tmp_path, keep):
    (said,) = leaked(rests_of(tmp_path, keep), "server")
    assert said.startswith("server: 1")
    assert said.endswith("KiB more in use at rest after 150 more requests")


def test_garbage_is_not_a_leak(tmp_path):
    assert leaked(rests_of(tmp_path, "lambda: None"), "server") == []


def test_a_process_that_does_not_say_what_it_uses_is_named(tmp_path):
    deaf = "import signal; signal.signal(signal.SIGUSR2, signal.SIG_IGN); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", deaf], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        process.stdout.readline()
        with pytest.raises(TimeoutError, match="expected \\['server'\\] to say"):
            asyncio.run(in_use({"server": psutil.Process(process.pid)}, tmp_path, limit_s=0))
        process.communicate("\n")
