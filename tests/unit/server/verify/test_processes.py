"""What is told of a process that gave no result."""

from __future__ import annotations

import pytest

from forkjoin_server.verify import processes
from forkjoin_server.verify.processes import complaint_in, run

CUDA = """Traceback (most recent call last):
  File "worker.py", line 7, in forward
torch.AcceleratorError: CUDA error: an illegal memory access was encountered
CUDA kernel errors might be asynchronously reported at some other API call.
Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.

[rank0]:[W1130 03:00:00.000 ProcessGroupNCCL.cpp:1479] Warning: destroy_process_group() was not called
"""
WORKER = """(Worker_TP1 pid=7) ERROR 11-30 03:00:00 [multiproc_executor.py:1063]     raise UnsupportedEngine(reason)
(Worker_TP1 pid=7) ERROR 11-30 03:00:00 [multiproc_executor.py:1063] a.errors.UnsupportedEngine: expects X
Traceback (most recent call last):
RuntimeError: Worker failed with error 'expects X', please check the stack trace above for the root cause
"""


@pytest.mark.parametrize(
    ("output", "complaint"),
    [
        ("", ""),
        ("one\ntwo\n\n", "two"),
        (CUDA, "torch.AcceleratorError: CUDA error: an illegal memory access was encountered"),
        (WORKER, "UnsupportedEngine: expects X"),
        ("ValueError: a\nDuring handling …\nKeyError: 'b'\n", "KeyError: 'b'"),
    ],
    ids=["nothing", "no_error", "cuda", "in_a_worker", "two_errors"],
)
def test_the_complaint_is_the_line_of_the_error(output, complaint):
    assert complaint_in(output) == complaint


def test_a_process_is_heard_and_its_output_kept():
    ended = run("nothing", "forkjoin_server.no_such_module", [])
    assert "No module named" in ended.complaint
    assert "no_such_module" in ended.log
    assert not ended.is_refused


def test_a_process_that_does_not_end_is_ended(monkeypatch):
    monkeypatch.setattr(processes, "TIMEOUT_S", 0.01)
    assert (
        run("nothing", "timeit", ["-n1", "-r1", "import time; time.sleep(60)"]).complaint
        == "not over after 0.01 s"
    )


def test_what_a_process_does_is_shown(capsys):
    run("a join", "timeit", ["-n1", "-r1", "pass"])
    assert "verifies: a join" in capsys.readouterr().err
