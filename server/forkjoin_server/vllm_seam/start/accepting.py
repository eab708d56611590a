"""A burst of connections is taken in while the event loop is busy."""

from __future__ import annotations

import socket
from weakref import WeakKeyDictionary

from forkjoin_server.vllm_seam.patching import put_in_place

#: Connections that a turn of the event loop takes in. Each one beyond the first costs a system call of some
#: microseconds whenever a connection comes.
A_TURN = 128


def accept_in_bursts() -> None:
    """Take in many connections in a turn of the event loop.

    Patch: ``NoSignalServer.startup`` listens at so many copies of each socket, which
    ``shutdown`` closes.
    Symptom without it: libuv accepts one connection of a socket in a turn. A turn in which a hundred streams
    write takes 15 ms; so of 2,000 clients who come at once the last, and ``/health`` after them, wait for
    half a minute until anybody reads what they want.
    Upstream: so in stock ``vllm serve``, too. Remove when vLLM or uvloop accepts more.
    """
    from vllm.entrypoints.launchers.launcher import NoSignalServer

    if NoSignalServer.startup.__module__ == __name__:
        return
    start, stop = NoSignalServer.startup, NoSignalServer.shutdown
    copies: WeakKeyDictionary[NoSignalServer, list[socket.socket]] = WeakKeyDictionary()

    async def startup(self: NoSignalServer, sockets: list[socket.socket] | None = None) -> None:
        copies[self] = [sock.dup() for sock in sockets or () for _ in range(A_TURN - 1)]
        await start(self, sockets and [*sockets, *copies[self]])

    async def shutdown(self: NoSignalServer, sockets: list[socket.socket] | None = None) -> None:
        await stop(self, [*(sockets or ()), *copies.pop(self, ())])

    put_in_place(NoSignalServer, startup, shutdown)
