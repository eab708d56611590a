"""The address to listen on."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from forkjoin_server.doctor.check import Check, fail, ok


def port(host: str | None, number: int) -> Check:
    """Whether the server can listen on ``number``, 0 being any that is free."""
    address = f"{host or '*'}:{number}"
    try:
        (family, kind, _, _, where), *_ = socket.getaddrinfo(
            host or None, number, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        with socket.socket(family, kind) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(where)
            tried.listen()
    except OSError as error:
        return fail(
            "port", f"{address} can't be listened on ({error.strerror})", "choose another with --port"
        )
    return ok("port", f"{address} is free")


def unix_socket(path: str) -> Check:
    """Whether the server can make a socket at ``path``."""
    if Path(path).exists():
        return fail("port", f"{path} exists", "remove it, or choose another path with --uds")
    if not os.access(Path(path).absolute().parent, os.W_OK):
        return fail("port", f"the folder of {path} can't be written", "choose another path with --uds")
    return ok("port", f"{path} can be made")
