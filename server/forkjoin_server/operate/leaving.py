"""The end of a server's first process, once all that it served has ended."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from typing import NoReturn


def leave(status: int) -> NoReturn:
    """End this process with ``status``, as ``multiprocessing`` ends its own: without a teardown of Python.

    As at any exit, its threads end, what is registered for the exit is done, and what was printed is written.
    A teardown would free nothing that the system does not free. It frees modules while other objects still
    refer to them, and Triton's library (nanobind's check) reports each such object: pages on standard error.
    """
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)
