"""Memory that processes have in use while nothing is asked of them: it must not grow with what they did.

What is resident under load moves by tens of MiB with the batches of a moment and with what an allocator keeps.
What is in use at rest moves by less than a leak of some KiB a request comes to in a minute.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.importing import importable

KIB, MIB = 2**10, 2**20
#: Its ``sitecustomize.py`` is run by each Python process that finds it.
_INSIDE = Path(__file__).parent / "inside"


@dataclass(frozen=True)
class Rest:
    """Nothing is under way."""

    #: So many requests have ended.
    num_requests: int
    #: Bytes in use, by process.
    in_use: Mapping[str, int]
    #: Seconds of CPU time that all processes have taken together.
    cpu_s: float


def environment(folder: Path) -> dict[str, str]:
    """With these a Python process says in ``folder`` how much memory it uses, when it is asked to."""
    return importable(_INSIDE) | {"PYTHONMALLOC": "malloc", "SOAK_MEMORY": str(folder)}


def cpu_s(processes: Mapping[str, psutil.Process]) -> float:
    """What ``processes`` have taken of CPU time, all together."""
    return sum(sum(process.cpu_times()[:2]) for process in processes.values())


async def in_use(
    processes: Mapping[str, psutil.Process], folder: Path, limit_s: float = 300
) -> dict[str, int]:
    """Bytes that each process has in use, garbage collected. Raises TimeoutError if one does not say.

    A process that is asked just before it starts to wait for something hears of it when it is asked again.
    """
    files = {name: folder / str(process.pid) for name, process in processes.items()}
    for file in files.values():
        file.unlink(missing_ok=True)
    end = time.monotonic() + limit_s
    while missing := [name for name, file in files.items() if not file.exists()]:
        if time.monotonic() > end:
            raise TimeoutError(f"expected {missing} to say within {limit_s} s how much memory they use")
        for name in missing:
            processes[name].send_signal(signal.SIGUSR2)
        await asyncio.sleep(1)
    return {name: int(file.read_text()) for name, file in files.items()}
