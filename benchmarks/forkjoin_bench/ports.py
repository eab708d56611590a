"""A port for a server that takes it some seconds later."""

from __future__ import annotations

import contextlib
import random
import socket

from forkjoin_scheduler.errors import UsageError

#: Below those that Linux gives to whoever asks for any: no connection takes one before a server does.
PORTS = range(20_000, 32_000)


def free_port() -> int:
    """One that nobody listens on. Raises UsageError if a hundred are taken."""
    for port in random.SystemRandom().sample(PORTS, 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise UsageError(f"expected a free port in {PORTS.start} to {PORTS.stop - 1}, tried 100: all are taken")
