"""``POST /v1/forkjoin/kept/{response_id}/release``: a client needs a kept answer no more.

Any API server may be asked, whichever made the answer: each asks all engines, between two of their steps.
"""

from __future__ import annotations

import logging
import re
from typing import Any

from forkjoin_scheduler.excerpt import cut
from forkjoin_server import own_responses
from forkjoin_server.asgi import Send

LOG = logging.getLogger("vllm.forkjoin.server")

PATH = "/v1/forkjoin/kept/{response_id}/release"
_PATH = re.compile(re.escape(PATH).replace(re.escape("{response_id}"), "([^/]+)"))
#: As the engine says it (``kept/leasing.py``).
_RELEASED = "released"


def asked_at(method: str, path: str) -> str | None:
    """The id of the answer that is to be released, None if the request is for something else."""
    found = _PATH.fullmatch(path)
    return found[1] if found is not None and method == "POST" else None


async def respond(response_id: str, tenant: str, client: Any, forks: bool, send: Send) -> None:
    """Release an answer of ``tenant``'s by ``client``, vLLM's engine client, and say what came of it.

    ``forks``: whether the server does; one that does not keeps nothing.
    """
    try:
        is_released = client is not None and forks and await _release(response_id, tenant, client)
    except Exception:  # whatever vLLM raises where an engine has died, or does not answer any more
        LOG.exception("%s: not released", cut(response_id, 100))
        message = "expected the engine to release the answer, but it has died or is shutting down"
        await own_responses.respond(send, 503, own_responses.error(message, PATH, 503))
        return
    if is_released:
        said = {"id": response_id, "object": "forkjoin.kept", "status": _RELEASED}
        await own_responses.respond(send, 200, said)
        return
    message = (
        f"expected the id of a kept answer of this API key, got {cut(response_id, 100)!r}: its lease is over "
        "(expired, released, or given up to running requests), it was never kept, or the id is wrong"
    )
    await own_responses.respond(send, 404, own_responses.error(message, PATH, 404, param="response_id"))


async def _release(response_id: str, tenant: str, client: Any) -> bool:
    heard = await client.engine_core.call_utility_all_async("forkjoin_release", response_id, tenant)
    return _RELEASED in heard
