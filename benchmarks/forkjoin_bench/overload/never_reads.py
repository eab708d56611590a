"""A client that never reads."""

from __future__ import annotations

import contextlib
import json
import socket

from forkjoin_bench.overload.plan import Plan, big_body
from forkjoin_bench.overload.told import REFUSALS, Told


class NeverReads:
    """Asks for a big answer on a small window, and takes none of it until it is told to hang up."""

    def __init__(self, plan: Plan, port: int) -> None:
        data = json.dumps(big_body(plan)).encode()
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._socket.connect(("127.0.0.1", port))
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            f"content-length: {len(data)}\r\n\r\n"
        )
        self._socket.sendall(head.encode() + data)

    def hang_up(self) -> Told:
        """Look at what had come, and close."""
        self._socket.settimeout(1)
        told = Told("cancelled")
        with contextlib.suppress(OSError):
            head = self._socket.recv(64)
            told.status = int(head.split()[1])
            told.outcome = "refused" if told.status in REFUSALS else "cancelled"
        self._socket.close()
        return told
