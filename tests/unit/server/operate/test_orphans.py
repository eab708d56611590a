from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel of Linux")

PARENT = """
import multiprocessing, os, signal, sys, time
from forkjoin_server.operate.orphans import die_with_the_parent
def child(then):
    if then == "late":
        parent = os.getppid()
        os.kill(parent, signal.SIGKILL)
        while os.getppid() == parent: time.sleep(0.01)
    die_with_the_parent()
    print(os.getpid(), flush=True)
    if then == "stopped": os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(600)
if __name__ == "__main__":
    multiprocessing.get_context(sys.argv[1]).Process(target=child, args=(sys.argv[2],)).start()
    time.sleep(600)
"""


def _state(pid: int) -> str:
    """The letter by which the kernel says what ``pid`` does; nothing if it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1].replace("Z", "")
    except OSError:
        return ""


def _until(is_so, seconds: float = 120) -> bool:
    end = time.monotonic() + seconds
    while not is_so() and time.monotonic() < end:
        time.sleep(0.01)
    return is_so()


@pytest.mark.parametrize("method", ["spawn", "fork"])
@pytest.mark.parametrize(("then", "state"), [("running", "S"), ("stopped", "T")])
def test_a_process_ends_when_its_parent_is_killed_even_while_it_is_stopped(tmp_path, method, then, state):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    with subprocess.Popen(
        [sys.executable, script, method, then], stdout=subprocess.PIPE, text=True
    ) as parent:
        pid = int(parent.stdout.readline())
        try:
            assert _until(lambda: _state(pid) == state)
            parent.kill()
            assert _until(lambda: _state(pid) == "")
        finally:
            if _state(pid):
                os.kill(pid, signal.SIGKILL)


def test_a_process_whose_parent_was_killed_before_it_asked_ends_at_once(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    over = subprocess.run([sys.executable, script, "spawn", "late"], stdout=subprocess.PIPE, timeout=120)
    # the pipe is at its end when the child has ended, too
    assert (over.returncode, over.stdout) == (-signal.SIGKILL, b"")


def test_what_does_not_end_in_time_is_ended_with_status_1():
    code = "import time; from forkjoin_server.operate.orphans import end_within; end_within(0.1); time.sleep(600)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 1


def test_what_ends_in_time_keeps_its_status():
    code = "from forkjoin_server.operate.orphans import end_within; end_within(600)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
