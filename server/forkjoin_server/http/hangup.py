"""A client that hangs up before it has its answer: one line in the log.

vLLM ends the request without a word, and answers ``null`` to nobody.
"""

from __future__ import annotations

import logging

from forkjoin_server.asgi import Message, Receive, Send

LOG = logging.getLogger("vllm.forkjoin.server")


def noticing(receive: Receive, send: Send, request_id: str) -> tuple[Receive, Send]:
    """``receive`` and ``send`` of a request, which log if its client hangs up before its answer is whole.

    After an answer, ``http.disconnect`` says only that there is no more to receive. vLLM listens for it no
    longer than until it has its answer.
    """
    is_over = False

    async def sent(message: Message) -> None:
        nonlocal is_over
        # Before it is sent: that alone makes uvicorn say so.
        if message["type"] == "http.response.body" and not message.get("more_body"):
            is_over = True
        await send(message)

    async def received() -> Message:
        nonlocal is_over
        message = await receive()
        if message["type"] == "http.disconnect" and not is_over:
            is_over = True
            LOG.info("%s: the client hung up, and the request ends with it", request_id)
        return message

    return received, sent
