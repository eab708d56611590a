"""SIGHUP of a server with a file of API keys: every API server reads the file again.

The signal is held from the first process's first moment on, and in every process that it starts: they inherit
that. So it ends none of them; and what comes before an API server listens reaches it when it does.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable


def hold() -> None:
    """Keep SIGHUP waiting, for this process and all that it starts from now on."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])


def release() -> None:
    """Let SIGHUP come, one that waits at once. It ends a process that does not listen."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGHUP])


def hand_on() -> None:
    """Let each SIGHUP of this process, the first, reach all API servers that it starts."""
    threading.Thread(target=_hand_on, name="sighup", daemon=True).start()


def listen(act: Callable[[], None]) -> None:
    """Call ``act`` at each SIGHUP. For the main thread, in which the event loop runs."""
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, act)
    release()


def _hand_on() -> None:
    while signal.sigwait([signal.SIGHUP]):
        for child in multiprocessing.active_children():
            if child.name.startswith("ApiServer") and child.pid is not None:
                os.kill(child.pid, signal.SIGHUP)
