"""No process of a server outlives the one that started it.

vLLM's engine core waits for requests, and its workers for the engine core, whether or not anybody can
still ask. A parent that is killed has no time to end them. So each process asks the kernel to kill it
when its parent ends. That also ends a process that is stopped, or stuck in a driver, which no thread of
its own could.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading

_PR_SET_PDEATHSIG = 1

#: What a server one of whose processes has died takes at most to tell its clients and to end.
FAILURE_S = 8


def die_with_the_parent() -> None:
    """Have this process killed when its parent ends, or at once if that has ended already.

    To the kernel the parent is the thread that started this process. vLLM starts all of its processes
    from main threads, which end with their process. Linux only; elsewhere nothing happens.
    """
    if sys.platform != "linux":
        return
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():
        os._exit(1)


def end_within(seconds: float) -> None:
    """End this process with status 1, and its children with it, unless it has ended in ``seconds``."""
    timer = threading.Timer(seconds, os._exit, (1,))
    timer.daemon = True
    timer.start()
