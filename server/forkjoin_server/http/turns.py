"""Between two outputs of the engine, the event loop does all else that is due."""

from __future__ import annotations

import asyncio
from typing import Any


def give_turns(client: Any) -> None:
    """Let vLLM's output handler, which ``client`` runs, wait for a turn of the loop before each output.

    Patch: ``get_output_async`` of the client's engine core.
    Symptom without it: a handler that lags behind finds the next output at once, so it goes on without
    a pause until it has caught up: seconds in which the event loop answers nobody.
    Upstream: vLLM pauses within an output of many requests only. Remove when it does between outputs.
    """
    core = client.engine_core
    take = core.get_output_async

    async def get_output_async() -> Any:
        await asyncio.sleep(0)
        return await take()

    core.get_output_async = get_output_async
