"""``POST /v1/forkjoin/threads/{thread_id}/cancel``: a client ends one thread of its running answer.

Any API server may be asked, whichever made the answer: each asks all engines, between two of their steps.
The one that runs the thread says what comes of it.
"""

from __future__ import annotations

import logging
import re
from typing import Any

from forkjoin_scheduler.excerpt import cut
from forkjoin_scheduler.families.thread_end import ThreadEnd
from forkjoin_scheduler.machine.cancelling import CANCELLING, UNKNOWN
from forkjoin_server import own_responses
from forkjoin_server.answer.thread_ids import ThreadName, name_in
from forkjoin_server.answer.threads import finish_reason
from forkjoin_server.asgi import Json, Send
from forkjoin_server.http import about

LOG = logging.getLogger("vllm.forkjoin.server")

PATH = f"{about.PATH}/threads/{{thread_id}}/cancel"
_PATH = re.compile(re.escape(PATH).replace(re.escape("{thread_id}"), "([^/]+)"))


def asked_at(method: str, path: str) -> str | None:
    """The id of the thread that is to be cancelled, None if the request is for something else."""
    found = _PATH.fullmatch(path)
    return found[1] if found is not None and method == "POST" else None


async def respond(thread_id: str, tenant: str, client: Any, send: Send) -> None:
    """Cancel a thread of ``tenant``'s by ``client``, vLLM's engine client, and say what came of it."""
    name = name_in(thread_id)
    try:
        heard = UNKNOWN if name is None or client is None else await _cancel(name, tenant, client)
    except Exception:  # whatever vLLM raises where an engine has died, or does not answer any more
        LOG.exception("%s: not cancelled", thread_id)
        message = f"expected the engine to cancel {thread_id}, but it has died or is shutting down"
        await own_responses.respond(send, 503, own_responses.error(message, PATH, 503))
    else:
        await own_responses.respond(send, *answer(thread_id, heard))


async def _cancel(name: ThreadName, tenant: str, client: Any) -> str:
    of_engines = await client.engine_core.call_utility_all_async(
        "cancel_thread", name.key, name.index, tenant
    )
    return next((heard for heard in of_engines if heard != UNKNOWN), UNKNOWN)


def answer(thread_id: str, heard: str) -> tuple[int, Json]:
    """The status and the body of the answer, where this was ``heard`` of an engine."""
    if heard == CANCELLING:
        return 202, {"id": thread_id, "object": "forkjoin.thread", "status": CANCELLING}
    if heard == UNKNOWN:
        message = (
            f"expected the id of a thread of an answer that is being made, got {cut(thread_id, 100)!r}, "
            "which no running answer of this API key has: it is over, or the id is wrong"
        )
        return 404, own_responses.error(message, PATH, 404, param="thread_id")
    message = (
        f"expected a thread that runs, but {thread_id} has ended already: {finish_reason(ThreadEnd(heard))}"
    )
    return 409, own_responses.error(message, PATH, 409, param="thread_id")
