"""Responses of our own: JSON, sent whole. An error has the shape that its route's clients read."""

from __future__ import annotations

import json
from collections.abc import Iterable

from forkjoin_server.asgi import Json, Send
from forkjoin_server.routes import MESSAGES

#: By status: the error type for OpenAI's clients, as vLLM writes it, and the one for Anthropic's.
_KINDS = {
    400: ("BadRequestError", "invalid_request_error"),
    401: ("AuthenticationError", "authentication_error"),
    404: ("NotFoundError", "not_found_error"),
    408: ("RequestTimeoutError", "timeout_error"),
    409: ("ConflictError", "invalid_request_error"),
    413: ("RequestEntityTooLargeError", "request_too_large"),
    429: ("RateLimitError", "rate_limit_error"),
    503: ("ServiceUnavailableError", "overloaded_error"),
}


def error(message: str, path: str, status: int = 400, param: str | None = None) -> Json:
    """The body of an error at ``path``: Anthropic's shape below /v1/messages, OpenAI's elsewhere."""
    openai, anthropic = _KINDS[status]
    if path == MESSAGES or path.startswith(f"{MESSAGES}/"):
        return {"type": "error", "error": {"type": anthropic, "message": message}}
    return {"error": {"message": message, "type": openai, "param": param, "code": status}}


async def respond(
    send: Send, status: int, body: Json, more_headers: Iterable[tuple[bytes, bytes]] = ()
) -> None:
    """Send ``body`` as the whole answer."""
    data = json.dumps(body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
    headers += more_headers
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})
