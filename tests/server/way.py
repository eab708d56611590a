"""Which files of ours a request touches, from the HTTP body to the last SSE chunk: ``python -m tests.server.way``.

Those in which a function ran, in any process of a real server, while one streamed request forked, joined and
ended; without the functions that an idle server calls.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import httpx

from tests.importing import importable
from tests.server.conftest import start_server

INSIDE = Path(__file__).with_name("inside")
#: What an idle server calls, it calls at least this often.
IDLE_S = 5.0
BODY = {
    "model": "abacus",
    "messages": [{"role": "user", "content": "a=482*731, b=9047*36"}],
    "stream": True,
    "stream_options": {"include_usage": True, "include_threads": True},
    "temperature": 0,
}


def files() -> dict[str, list[str]]:
    """The functions that ran, by file; of no other request, and of none while the server waited for it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        env = importable(INSIDE) | {"TRACED_FUNCTIONS": name}
        with start_server(folder / "log", env=env) as (address, _):
            _ask(address)  # what the first request does once is not its way
            time.sleep(IDLE_S)  # what it leaves to do after its last chunk is over by then
            _ran_since(folder, 0)
            time.sleep(IDLE_S)
            idle = _ran_since(folder, 1)
            _ask(address)
            ran = _ran_since(folder, 2)
    by_file: dict[str, list[str]] = {}
    for file, function in sorted(ran - idle):
        by_file.setdefault(_short(file), []).append(function)
    return by_file


def _ask(address: str) -> None:
    with httpx.stream("POST", f"{address}/v1/chat/completions", json=BODY, timeout=600) as response:
        text = "".join(response.iter_text())
    assert '"joined"' in text or '"threads"' in text, f"expected an answer that forks, got {text[-2000:]}"
    assert text.rstrip().endswith("[DONE]")


def _ran_since(folder: Path, number: int) -> set[tuple[str, str]]:
    """What all processes called since they were asked last; ``number``: how often that was."""
    pids = [int(path.stem) for path in folder.glob("*.pid")]
    alive = [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    for pid in alive:
        os.kill(pid, signal.SIGUSR2)
    ran: set[tuple[str, str]] = set()
    for pid in alive:
        ran.update(tuple(pair) for pair in json.loads(_text(folder / f"{pid}.{number}", pid)))
    return ran


def _text(path: Path, pid: int) -> str:
    """What stands in ``path`` as soon as it is there; nothing, if its process ends first."""
    while not path.exists():
        if not Path(f"/proc/{pid}").exists():
            return "[]"
        time.sleep(0.05)
    return path.read_text()


def _short(file: str) -> str:
    parts = Path(file).parts
    return "/".join(parts[next(i for i, part in enumerate(parts) if part.startswith("forkjoin_")) :])


def _print(by_file: Iterable[tuple[str, list[str]]]) -> None:
    for file, functions in by_file:
        print(f"{file:50} {', '.join(functions[:4])}{' …' * (len(functions) > 4)}")


if __name__ == "__main__":
    found = files()
    _print(found.items())
    print(f"{len(found)} files")
