"""``GET /ready``: whether this replica should be sent requests."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any


async def is_ready(scope: MutableMapping[str, Any]) -> bool:
    """Whether the engine answers and the server is not draining."""
    state = scope["app"].state
    client = getattr(state, "engine_client", None)
    server = getattr(state, "server", None)
    if client is None or (server is not None and server.should_exit):
        return False
    try:
        await client.check_health()
    except Exception:  # whatever the engine died of: it is not ready
        return False
    return True
