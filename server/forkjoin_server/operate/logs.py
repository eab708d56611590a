"""JSON logs (``--log-format json``): one object a line on standard output, from every writer.

Loggers are configured in every process by vLLM's own means, a file in the format of ``dictConfig``
that it hands to all that it starts (``written``). What is not logged but printed (native
libraries, progress bars, a traceback, warnings of imports) goes through a relay: a process that
stands between all of ours and standard output, and makes an object of what is none.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

from forkjoin_scheduler.publish.feed import key_in
from forkjoin_server.operate.output import Output

FLAG = "--log-format"

#: How every entry of ours begins.
_BEGIN = '{"time": "'

#: The id of the request that is being answered, as ``middleware.py`` gives it to vLLM.
REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)


class JsonFormatter(logging.Formatter):
    """A record as JSON. ``extra={"forkjoin": {...}}`` adds fields, ``request_id`` and ``thread`` among them.

    vLLM makes several ids of a request's (one for its client, one for the engine). All hold our key,
    so ``request_key`` finds all lines of a request, in every process.
    """

    def format(self, record: logging.LogRecord) -> str:
        process = getattr(record, "vllm_process_name", record.processName)
        entry = _entry(
            record.created, record.levelname, record.name, record.getMessage(), process, record.process
        )
        request_id = REQUEST_ID.get()
        entry |= {} if request_id is None else {"request_id": request_id}
        entry |= getattr(record, "forkjoin", {})
        if key := key_in(entry.get("request_id", "")):
            entry["request_key"] = key
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


class LineHandler(logging.StreamHandler[Any]):
    """Writes each entry whole to standard output, whatever other processes write to it.

    What is longer than ``PIPE_BUF`` (a traceback) a pipe takes in pieces once it is full, and others'
    lines go between. So it is locked meanwhile; the lock is the process's, and goes with it.
    """

    def emit(self, record: logging.LogRecord) -> None:
        fcntl.lockf(1, fcntl.LOCK_EX)
        try:
            super().emit(record)
        finally:
            fcntl.lockf(1, fcntl.LOCK_UN)


def _entry(
    created_s: float, level: str, logger: str, message: str, process: str | None, pid: int | None
) -> dict[str, Any]:
    time = datetime.fromtimestamp(created_s, UTC).isoformat(timespec="milliseconds")
    return {
        "time": time,
        "level": level,
        "logger": logger,
        "message": message,
        "process": process,
        "pid": pid,
    }


def wants_json(argv: list[str]) -> bool:
    """Whether ``argv`` asks for JSON logs itself; a config file may, too, which only vLLM reads."""
    words = [part.replace("_", "-") for a in argv for part in a.split("=", 1)]
    return (FLAG, "json") in pairwise(words)


def config(level: str, uvicorn_level: str, quiet_paths: list[str]) -> dict[str, Any]:
    """What ``logging.config.dictConfig`` takes to log JSON; no accesses to ``quiet_paths``."""
    access_filter = {"()": "vllm.logging_utils.UvicornAccessLogFilter", "excluded_paths": quiet_paths}
    stream = {
        "class": f"{__name__}.{LineHandler.__name__}",
        "formatter": "json",
        "stream": "ext://sys.stdout",
    }
    ours = {"handlers": ["json"], "propagate": False}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": f"{__name__}.{JsonFormatter.__name__}"}},
        "filters": {"access": access_filter},
        "handlers": {"json": stream, "access": stream | {"filters": ["access"]}},
        "root": {"handlers": ["json"], "level": "WARNING"},
        "loggers": {
            "vllm": ours | {"level": level},
            "uvicorn": ours | {"level": uvicorn_level.upper()},
            "uvicorn.access": ours | {"level": uvicorn_level.upper(), "handlers": ["access"]},
        },
    }


@contextlib.contextmanager
def written(config: dict[str, Any]) -> Iterator[str]:
    """The path of a file with ``config``, for the processes that are started inside."""
    with tempfile.NamedTemporaryFile("w", prefix="forkjoin-log-", suffix=".json") as file:
        json.dump(config, file)
        file.flush()
        yield file.name


def start_relay() -> None:
    """From here on, all that this process and its children print goes through the relay.

    It ends when the last of them has, and so outlives even what native libraries say at exit.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    relay = subprocess.Popen([sys.executable, "-m", __name__], stdin=subprocess.PIPE)  # noqa: S603
    assert relay.stdin is not None
    for fd in (1, 2):
        os.dup2(relay.stdin.fileno(), fd)
    relay.stdin.close()
    relay.returncode = 0  # nobody waits for it


def as_json(line: bytes) -> list[str]:
    """``line`` as objects: itself if it is one, none if it is blank.

    Two if an entry of ours stands at its end: another process had printed the beginning, without
    an end yet (native libraries write so, and progress bars).
    """
    text = line.decode(errors="replace").rstrip("\n")
    if _is_object(text):
        return [text]
    printed, begin, rest = text.rpartition(_BEGIN)
    if begin and _is_object(begin + rest):
        return [*_printed(printed), begin + rest]
    return _printed(text)


def _is_object(text: str) -> bool:
    if text.startswith("{"):
        with contextlib.suppress(ValueError):
            json.loads(text)
            return True
    return False


def _printed(text: str) -> list[str]:
    # of a progress bar, what it said last
    message = text.rstrip("\r").rpartition("\r")[2]
    if not message.strip():
        return []
    return [json.dumps(_entry(datetime.now(UTC).timestamp(), "INFO", "printed", message, None, None))]


def relay() -> None:
    """Make JSON of standard input, line by line, until nobody can write to it any more.

    What standard output does not take is lost, and said once it takes something again.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # which a terminal sends to us, too
    output, num_lost = Output(1), 0
    for line in sys.stdin.buffer:
        for text in as_json(line):
            if num_lost and output.write(_encoded(_lost(num_lost))):
                num_lost = 0
            num_lost += not output.write(_encoded(text))


def _lost(num_lines: int) -> str:
    message = f"{num_lines} lines before this one were lost: they could not be written"
    return json.dumps(_entry(datetime.now(UTC).timestamp(), "WARNING", "printed", message, None, None))


def _encoded(text: str) -> bytes:
    return f"{text}\n".encode(errors="backslashreplace")


if __name__ == "__main__":
    relay()
