"""vLLM's own API keys."""

from __future__ import annotations

from typing import Any


def without_authentication(app: Any) -> tuple[Any, list[bytes]]:
    """``app``, a chain of middleware, without vLLM's that asks for API keys; and the SHA-256 of those keys.

    vLLM's leaves all routes open but those below /v1 and a few more, and knows no key but its own.
    """
    from vllm.entrypoints.serve.middleware.authenticate import AuthenticationMiddleware

    digests: list[bytes] = []
    outer, inner = None, app
    while inner is not None:
        after = getattr(inner, "app", None)
        if isinstance(inner, AuthenticationMiddleware):
            digests += inner.api_tokens
            if outer is None:
                app = after
            else:
                outer.app = after
        else:
            outer = inner
        inner = after
    return app, digests
