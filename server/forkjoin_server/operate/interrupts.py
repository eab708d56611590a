"""SIGTERM and SIGINT before a server serves, which then handles them itself."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def killing() -> Iterator[None]:
    """Inside, where there is nothing to clean up, SIGINT kills this process as SIGTERM does.

    An exception would show a traceback, or be lost: some imports drop whatever is raised in them.
    """
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def exit_at_a_signal() -> None:
    """From now on the first of these signals raises SystemExit, with status 0.

    Any other is ignored then: it would interrupt what ends the engine, which would stay.
    """
    for number in _SIGNALS:
        signal.signal(number, _exit)


def _exit(*_: object) -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise SystemExit(0)


def leave_to_the_parent() -> None:
    """Let nothing that runs in this process, or that it starts, hear of SIGINT.

    A terminal sends Ctrl-C to all processes of a server at once. Its first one ends the others.
    A shell unblocks it for itself and what it runs: vLLM's ``lscpu``, for a tenth of a second of a start.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
