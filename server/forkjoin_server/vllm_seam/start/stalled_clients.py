"""Clients that read nothing."""

from __future__ import annotations

import socket
from typing import Any

from forkjoin_server.vllm_seam.patching import put_in_place


def disconnect_stalled(seconds: int) -> None:
    """Have the kernel disconnect a client that takes nothing of what it is sent for ``seconds``.

    Patch: ``create_server_socket`` sets TCP_USER_TIMEOUT on the socket that the server listens on; each
    connection inherits it.
    Symptom without it: who never reads keeps its connection, and what was written for it, forever.
    Upstream: uvicorn has no timeout of writes. Remove when it has one. Linux only; elsewhere, and on Unix
    sockets, nothing happens.
    """
    from vllm.entrypoints.launchers import launcher

    original, option = launcher.create_server_socket, getattr(socket, "TCP_USER_TIMEOUT", None)
    if option is None:
        return

    def create_server_socket(*args: Any, **kwargs: Any) -> socket.socket:
        made: socket.socket = original(*args, **kwargs)
        made.setsockopt(socket.IPPROTO_TCP, option, seconds * 1000)
        return made

    put_in_place(launcher, create_server_socket)
