from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import atexit, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from forkjoin_server.operate.leaving import leave

class Torn:
    def __del__(self):
        print("torn down")

torn, go = Torn(), threading.Event()
pool = ThreadPoolExecutor()
pool.submit(lambda: (go.wait(), sys.stdout.write("a thread's work\\n")))
atexit.register(sys.stdout.write, "at exit\\n")
go.set()
sys.stdout.write("printed\\n")
sys.stderr.write("and said")
leave(3)
"""


def test_what_leaves_does_all_that_an_exit_does_but_the_teardown():
    over = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60)
    assert (over.returncode, over.stderr) == (3, "and said")
    assert sorted(over.stdout.splitlines()) == [
        "a thread's work",
        "at exit",
        "printed",
    ]
    torn_down = subprocess.run(
        [sys.executable, "-c", SCRIPT.replace("leave(3)", "")], capture_output=True, text=True, timeout=60
    )
    assert "torn down" in torn_down.stdout
