"""How many connections a turn of the event loop takes in, of vLLM's own uvicorn server on a real socket."""

from __future__ import annotations

import asyncio
import socket

import pytest
import uvicorn
import uvloop
from vllm.entrypoints.launchers.launcher import NoSignalServer

from forkjoin_server.vllm_seam.start.accepting import A_TURN, accept_in_bursts

NUM_CLIENTS = 300


async def _app(scope, receive, send):
    raise AssertionError("nobody asks for anything")


async def _turns_to_accept(server, listening, clients) -> int:
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    while not server.started:
        await asyncio.sleep(0)
    for client in clients:  # they wait in the kernel before the loop can turn
        client.connect(listening.getsockname())
    turns = 0
    while len(server.server_state.connections) < len(clients):
        turns += 1
        await asyncio.sleep(0)
    for client in clients:
        client.close()
    server.should_exit = True
    await serving
    return turns


@pytest.mark.parametrize("peer_loads", [None, ([0], 0)], ids=["one_server", "one_of_several"])
def test_a_burst_of_connections_is_taken_in_within_a_few_turns(monkeypatch, peer_loads):
    for name in ("startup", "shutdown"):
        monkeypatch.setattr(NoSignalServer, name, getattr(NoSignalServer, name))
    accept_in_bursts()
    accept_in_bursts()  # a second time is none
    config = uvicorn.Config(_app, lifespan="off", log_config=None)
    clients = [socket.socket() for _ in range(NUM_CLIENTS)]
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = NoSignalServer(config, peer_loads=peer_loads)
        turns = uvloop.run(_turns_to_accept(server, listening, clients))
    assert turns < 10 * NUM_CLIENTS / A_TURN
