"""Standard output and error that never fail: what can't be written is dropped, and a server serves on.

A log may go to a pipe whose reader has gone, or to a disk that is full. Python then raises in whatever
prints or logs. Here such a write is lost, and the next one is tried again: a disk has space some day,
and a named pipe gets another reader.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import sys
from typing import Any

_STANDARD = {"stdout": 1, "stderr": 2}


class Output:
    """Writes to a file descriptor, or drops."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        #: Whether what was written last is the beginning of something that then could not be.
        self._is_torn = False

    def write(self, data: bytes) -> bool:
        """Write ``data``. False if some of it is lost."""
        left = memoryview(b"\n" + data if self._is_torn else data)
        try:
            while left:
                written = self._write_some(left)
                self._is_torn, left = False, left[written:]
        except OSError:
            self._is_torn = self._is_torn or 0 < len(left) < len(data)
            return False
        return True

    def _write_some(self, data: memoryview) -> int:
        while True:
            try:
                return os.write(self._fd, data)
            except BlockingIOError:  # a full pipe that its maker opened as non-blocking
                select.select([], [self._fd], [])


class _Raw(io.RawIOBase):
    """The same as a file of Python's."""

    def __init__(self, fd: int) -> None:
        self._output, self._fd = Output(fd), fd

    def write(self, data: Any) -> int:
        with memoryview(data) as view:
            self._output.write(bytes(view))
            return view.nbytes

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return os.isatty(self._fd)


def never_fail() -> None:
    """Put files that never fail in the place of Python's own ``sys.stdout`` and ``sys.stderr``.

    A standard descriptor that is closed becomes /dev/null: the next file that is opened would be it.
    """
    for fd in (0, *_STANDARD.values()):
        try:
            os.fstat(fd)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != fd:
                os.dup2(null, fd)
                os.close(null)
    for name, fd in _STANDARD.items():
        before = getattr(sys, name)
        if before is not getattr(sys, f"__{name}__"):
            continue  # somebody listens
        if before is not None:
            with contextlib.suppress(OSError, ValueError):
                before.flush()
        encoding = before.encoding if before is not None else None
        file = io.TextIOWrapper(
            io.BufferedWriter(_Raw(fd)), encoding, errors="backslashreplace", line_buffering=True
        )
        setattr(sys, name, file)
