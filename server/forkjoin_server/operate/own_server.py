"""A server that one command starts for itself: ``forkjoin serve`` at a socket that nobody else finds."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import httpx

from forkjoin.asking import Server
from forkjoin.batch.command import Asked
from forkjoin.batch.running import Interrupted
from forkjoin.errors import ForkJoinError
from forkjoin_server.operate.orphans import die_with_the_parent

_POLL_S = 0.5
#: What a server may take to end before it is killed.
_END_S = 60
#: At a Unix socket any host will do.
_ADDRESS = "http://localhost"


@contextlib.contextmanager
def serving(flags: list[str]) -> Iterator[Asked]:
    """Inside, ``forkjoin serve FLAGS`` answers. What it writes goes to standard error.

    It has an API key of its own, whatever keys others have.

    Raises ForkJoinError if it does not start, and Interrupted if this process is told to end before it has.
    """
    with tempfile.TemporaryDirectory(prefix="forkjoin-") as folder:
        uds = f"{folder}/socket"
        key = os.environ.get("VLLM_API_KEY") or secrets.token_urlsafe()
        server = Server.named(_ADDRESS, key)
        command = [sys.executable, "-m", "forkjoin_server.cli", "serve", *flags, "--uds", uds]
        # A session of its own: Ctrl-C in a terminal is for us, who end it then.
        process = subprocess.Popen(  # noqa: S603 - our own command
            command,
            stdout=2,
            start_new_session=True,
            preexec_fn=die_with_the_parent,
            env={**os.environ, "VLLM_API_KEY": key},
        )
        try:
            with _interruptible():
                _wait_until_ready(process, uds)
            yield Asked(server, uds, lambda: _why_over(process))
        finally:
            _end(process)


def _wait_until_ready(process: subprocess.Popen[bytes], uds: str) -> None:
    with httpx.Client(transport=httpx.HTTPTransport(uds=uds), timeout=10) as http:
        while (reason := _why_over(process)) is None:
            with contextlib.suppress(httpx.TransportError):
                if os.path.exists(uds) and http.get(f"{_ADDRESS}/ready").is_success:
                    return
            time.sleep(_POLL_S)
    raise ForkJoinError(reason)


def _why_over(process: subprocess.Popen[bytes]) -> str | None:
    status = process.poll()
    if status is None:
        return None
    return f"expected a server that answers, got its end, with status {status}: its output says why"


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Inside, SIGINT and SIGTERM raise Interrupted."""

    def end(number: int, _: object) -> None:
        raise Interrupted(signal.Signals(number))

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
