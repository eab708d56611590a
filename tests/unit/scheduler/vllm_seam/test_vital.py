from __future__ import annotations

import subprocess
import sys

import pytest

DIES = """
import queue, sys, threading
from types import SimpleNamespace
from forkjoin_scheduler.vllm_seam.vital import end_with_vital_threads
end_with_vital_threads()
if sys.argv[1] == "vital":
    from vllm.v1.engine.core import EngineCoreProc
    core = SimpleNamespace(output_queue=queue.Queue())
    core.output_queue.put((0, SimpleNamespace(text="\\ud800")))  # what no client could be sent
    core.process_output_sockets = lambda: EngineCoreProc.process_output_sockets(core, [], None, 0)
    target = core.process_output_sockets
else:
    target = lambda: 1 / 0
thread = threading.Thread(target=target, daemon=True)
thread.start()
thread.join(60)
print("lives on")
"""


@pytest.mark.parametrize(
    ("thread", "status", "printed"), [("vital", 1, ""), ("of no engine", 0, "lives on\n")]
)
def test_an_engine_core_ends_with_the_thread_that_writes_its_outputs_and_with_no_other(
    thread, status, printed
):
    over = subprocess.run(
        [sys.executable, "-c", DIES, thread], capture_output=True, text=True, timeout=300, check=False
    )
    assert (over.returncode, over.stdout) == (status, printed)
    assert over.stderr.count("Traceback") == 1
    assert ("has died, and this process ends with it" in over.stderr) == (status == 1)
