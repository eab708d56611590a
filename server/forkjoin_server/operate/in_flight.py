"""Requests in flight in all API servers of one `forkjoin serve` (``--api-server-count``).

A drain is over when none has any left: a server that stopped before would close connections on
which clients may still ask. They are processes that vLLM spawns, which share nothing of ours but the
environment. So each holds a shared lock on one file while it has requests in flight, and whoever
gets the exclusive one knows that none has. The kernel lets go of the locks of a process that dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import threading
from collections.abc import Iterator

#: Names the file, in the environment.
FILE = "FORKJOIN_IN_FLIGHT"


@contextlib.contextmanager
def shared_with_children() -> Iterator[None]:
    """The processes that are started inside share what they have in flight."""
    with tempfile.NamedTemporaryFile(prefix="forkjoin-") as file:
        os.environ[FILE] = file.name
        try:
            yield
        finally:
            del os.environ[FILE]


class InFlight:
    """The requests of this process, and whether any is left in those that share the file."""

    def __init__(self, path: str | None) -> None:
        """``path`` None: this process is the only one."""
        self._num_own = 0
        #: A drain asks from a thread of its own.
        self._mutex = threading.Lock()
        self._fd = None if path is None else os.open(path, os.O_RDONLY)

    @contextlib.contextmanager
    def request(self) -> Iterator[None]:
        """A request that a drain waits for."""
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)

    def _count(self, more: int) -> None:
        with self._mutex:
            before, self._num_own = self._num_own, self._num_own + more
            if before == 0:
                self._lock(fcntl.LOCK_SH)
            elif self._num_own == 0:
                self._lock(fcntl.LOCK_UN)

    def is_any(self) -> bool:
        """Whether any process has a request in flight, or asks the same in this moment."""
        with self._mutex:
            if self._num_own:
                return True
            try:
                self._lock(fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            self._lock(fcntl.LOCK_UN)
            return False

    def _lock(self, operation: int) -> None:
        if self._fd is not None:
            fcntl.flock(self._fd, operation)
