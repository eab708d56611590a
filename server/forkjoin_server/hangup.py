"""A client that hangs up before it has its answer: one line in the log.

vLLM ends the request without a word, and answers ``null`` to nobody.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from forkjoin_server.weaver import Message

Receive = Callable[[], Awaitable[Message]]

LOG = logging.getLogger("vllm.forkjoin.server")


def noticing(receive: Receive, request_id: str) -> Receive:
    """``receive`` of a request, which logs the first time that its client turns out to have hung up.

    vLLM listens for that no longer than until it has its answer.
    """
    has_noticed = False

    async def noticed() -> Message:
        nonlocal has_noticed
        message = await receive()
        if message["type"] == "http.disconnect" and not has_noticed:
            has_noticed = True
            LOG.info("%s: the client hung up, and the request ends with it", request_id)
        return message

    return noticed
