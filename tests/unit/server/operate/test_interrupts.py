from __future__ import annotations

import subprocess
import sys

import pytest

SENT = """
import os, signal, sys, time
from forkjoin_server.operate.interrupts import exit_at_a_signal, killing, leave_to_the_parent
send = lambda number: os.kill(os.getpid(), number)
"""


def _run(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", SENT + script], capture_output=True, text=True, timeout=60)


def test_where_nothing_is_to_be_cleaned_up_an_interrupt_kills_even_what_drops_exceptions():
    over = _run("with killing():\n try: send(signal.SIGINT); time.sleep(60)\n except BaseException: pass")
    assert (over.returncode, over.stderr) == (-2, "")


@pytest.mark.parametrize("first", ["SIGINT", "SIGTERM"])
def test_the_first_signal_exits_with_status_0_and_no_other_interrupts_what_it_ends(first):
    cleaning = "send(signal.SIGINT); send(signal.SIGTERM); print('cleaned')"
    over = _run(f"exit_at_a_signal()\ntry: send(signal.{first}); time.sleep(60)\nfinally: {cleaning}")
    assert (over.returncode, over.stdout, over.stderr) == (0, "cleaned\n", "")


def test_a_process_that_leaves_ctrl_c_to_its_parent_does_not_hear_of_it_nor_does_what_it_starts():
    child = "import os; os.kill(os.getpid(), 2); print('child')"
    over = _run(
        f"import subprocess; leave_to_the_parent(); send(2)\n"
        f"subprocess.run([sys.executable, '-c', {child!r}]); print('parent')"
    )
    assert over.stdout == "child\nparent\n"
