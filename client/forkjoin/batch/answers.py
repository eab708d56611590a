"""The output of a batch: one answer a line, in the order in which they came.

Each row is added whole, in one write. So a run that is killed loses no answer that it has had: at most its
last row is torn, and the next run drops that. ``sync`` brings rows to the disk, against a loss of power.

Invariants (pinned by tests): no row of an answer is ever changed or lost, and a request has one row.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from forkjoin.batch.lines import ID_PREFIX, BadBatch, Line
from forkjoin.parsing import parsed

Row = Mapping[str, Any]
#: How each row that we write begins.
_BEGINNING = f'{{"id": "{ID_PREFIX}'.encode()


@dataclass(frozen=True)
class Kept:
    """What the next run keeps of an output: where the row of each answered request begins and ends."""

    spans: dict[str, tuple[int, int]]
    #: Whether there is nothing else in it.
    is_all: bool


def is_answer(row: Row) -> bool:
    """Whether ``row`` answers its request, which then is not asked again."""
    response = row.get("response")
    return isinstance(response, dict) and row.get("error") is None and response.get("status_code") == 200


def kept(rows: Iterable[bytes], lines: Iterable[Line], name: str) -> Kept:
    """What to keep of the output ``rows``, each with its end of line, that an earlier run wrote.

    Rows of failures are dropped, and what a killed run has torn. Raises BadBatch if anything else is no
    answer to one of ``lines``: the file is somebody else's, or that of another input.
    """
    ids = {line.custom_id: line.id for line in lines}
    spans: dict[str, tuple[int, int]] = {}
    end, is_all = 0, True
    for number, text in enumerate(rows, 1):
        start, end = end, end + len(text)
        row = _row(text)
        if row is None:
            is_torn = not text.endswith(b"\n") and (
                text.startswith(_BEGINNING) or _BEGINNING.startswith(text)
            )
            if not is_torn:
                raise BadBatch(
                    f"{name}:{number}: expected an answer that forkjoin run-batch wrote, got {_shown(text)}: "
                    "choose another --output-file"
                )
        elif is_answer(row):
            custom_id = row["custom_id"]
            if ids.get(custom_id) != row["id"]:
                raise BadBatch(
                    f"{name}:{number}: expected the answer to a request of the input, got that to "
                    f"{_shown(custom_id)}, which is not there, or asks for something else now: choose "
                    "another --output-file, or remove this line of it"
                )
            if custom_id not in spans:
                spans[custom_id] = start, end
                is_all &= text.endswith(b"\n")
                continue
        is_all = False
    return Kept(spans, is_all)


def _row(text: bytes) -> dict[str, Any] | None:
    """The row of a line, None if it is none of ours."""
    try:
        row = parsed(text)
    except ValueError:
        return None
    if not (isinstance(row, dict) and isinstance(row.get("custom_id"), str)):
        return None
    return row if str(row.get("id")).startswith(ID_PREFIX) else None


class Answers:
    """The file of the output, which one run at a time may write."""

    def __init__(self, path: Path, lines: list[Line]) -> None:
        """Open ``path`` to go on with it. Raises BadBatch, and then has changed nothing."""
        self._path = path.resolve()
        self._locked: list[int] = []
        try:
            self._fd = self._open(self._path)
            with open(self._fd, "rb", closefd=False) as file:
                found = kept(file, lines, str(path))
            if not found.is_all:
                self._rewrite(found.spans)
            self._size = os.fstat(self._fd).st_size
        except OSError as error:
            self.close()
            raise BadBatch(
                f"--output-file: expected a file to write answers to, got {path}: {error.strerror}"
            ) from error
        except BadBatch:
            self.close()
            raise
        self._is_dirty = False
        #: The requests that earlier runs have answered.
        self.answered = frozenset(found.spans)

    def _open(self, path: Path) -> int:
        fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        self._locked.append(fd)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise BadBatch(f"--output-file: expected a file, got {path}, which is none: choose another")
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BadBatch(
                f"--output-file: expected a file that no other run writes, got {path}: wait for the other "
                "run, or choose another file"
            ) from error
        return fd

    def _rewrite(self, spans: Mapping[str, tuple[int, int]]) -> None:
        """Keep ``spans`` alone. The old file stays until the new one is whole, and is locked as it is."""
        new = self._path.with_name(f"{self._path.name}.tmp")
        new.unlink(missing_ok=True)
        fd = self._open(new)
        os.fchmod(fd, stat.S_IMODE(os.fstat(self._fd).st_mode))
        with open(fd, "ab", closefd=False) as file:
            for start, end in spans.values():
                file.write(os.pread(self._fd, end - start, start).rstrip(b"\n") + b"\n")
        os.fsync(fd)
        new.replace(self._path)
        self._fd = fd

    def append(self, row: Row) -> None:
        """Add a row, whole or not at all. Raises OSError if there is no room for it."""
        data = json.dumps(row).encode() + b"\n"
        written = 0
        try:
            while written < len(data):
                written += os.write(self._fd, data[written:])
        except OSError:
            os.ftruncate(self._fd, self._size)
            raise
        self._size += len(data)
        self._is_dirty = True

    def sync(self) -> None:
        """Have what was added on the disk."""
        if self._is_dirty:
            os.fsync(self._fd)
            self._is_dirty = False

    def close(self) -> None:
        """Let other runs write the file."""
        while self._locked:
            os.close(self._locked.pop())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _shown(value: bytes | str) -> str:
    text = value.decode(errors="replace").rstrip("\n") if isinstance(value, bytes) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
