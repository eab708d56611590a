"""SIGTERM while the engine starts."""

from __future__ import annotations

from typing import Any

from forkjoin_server.operate.interrupts import exit_at_a_signal
from forkjoin_server.vllm_seam.patching import put_in_place


def keep_sigterm() -> None:
    """Let a SIGTERM end the start of the engine.

    Patch: ``setup_server``, which vLLM's ``run_server`` calls first, takes SIGTERM back from it.
    Symptom without it: a SIGTERM while the engine starts is lost, for vLLM's handler raises
    KeyboardInterrupt, and ``zmq_socket_ctx`` drops it. The server goes on and serves; or, if the
    engine had not yet been heard of, each waits for the other for minutes.
    Upstream: so in stock ``vllm serve``, too. Remove when that context lets it through.
    """
    from vllm.entrypoints.launchers.api_server import entry

    original = entry.setup_server

    def setup_server(*args: Any, **kwargs: Any) -> Any:
        exit_at_a_signal()
        return original(*args, **kwargs)

    put_in_place(entry, setup_server)
