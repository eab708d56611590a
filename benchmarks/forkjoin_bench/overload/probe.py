"""Asks for ``/health`` and looks at memory all the while, in a process of its own.

In the process of the clients it would wait for them, and take that for the server's doing.
``python -m forkjoin_bench.overload.probe PORT PID`` goes on until its standard input ends, then prints
what it has seen as JSON.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import psutil

INTERVAL_S = 0.2
#: What takes longer has failed.
TIMEOUT_S = 60


@dataclass
class Seen:
    """``health_s``: seconds that each question took; ``memory_mib``: before, peak and after, by process."""

    health_s: list[float] = field(default_factory=list)
    num_failed: int = 0
    memory_mib: dict[str, dict[str, int]] = field(default_factory=dict)


@contextlib.contextmanager
def watching(port: int, pid: int) -> Iterator[Seen]:
    """Watch the server at ``port`` with the first process ``pid``; what was seen is there at the end."""
    command = [sys.executable, "-m", __name__, str(port), str(pid)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:  # noqa: S603 - our own
        assert process.stdout is not None
        process.stdout.readline()  # it has looked for the first time
        seen = Seen()
        yield seen
        vars(seen).update(json.loads(process.communicate()[0]))


def main(port: int, pid: int) -> None:
    """Watch until standard input ends."""
    seen, first = Seen(), psutil.Process(pid)
    _see_memory(seen, first, "peak")
    print(flush=True)
    while not select.select([sys.stdin], [], [], INTERVAL_S)[0]:
        began = time.monotonic()
        is_well = _is_well(port)
        seen.health_s.append(time.monotonic() - began)
        seen.num_failed += not is_well
        _see_memory(seen, first, "peak")
    _see_memory(seen, first, "after")
    print(json.dumps(asdict(seen)))


def _is_well(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _see_memory(seen: Seen, first: psutil.Process, when: str) -> None:
    for name, mib in _mib(first).items():
        memory = seen.memory_mib.setdefault(name, {"before": mib, "peak": mib})
        memory[when] = max(memory.get(when, 0), mib)


def _mib(first: psutil.Process) -> dict[str, int]:
    found: dict[str, int] = {}
    for number, process in enumerate([first, *first.children(recursive=True)]):
        with contextlib.suppress(psutil.Error):
            name = "first process" if not number else process.name() or str(process.pid)
            while name in found:
                name += "'"
            found[name] = process.memory_info().rss >> 20
    return found


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
