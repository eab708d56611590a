"""Requests that fork/join leaves alone, told by their body.

The engine decides for itself, by what vLLM makes of a request; this is to say so in time: to refuse
a fork that the client asks for, and to ask no model for threads that would not run.
"""

from __future__ import annotations

from forkjoin_server.asgi import Json


def bypass_reason(body: Json) -> str | None:
    """Why a request with this body will not fork, None if it may.

    Of structured output, ``structured.py`` knows more.
    """
    if body.get("prompt_embeds") is not None:
        return "prompt embeddings"
    budgets = body.get("thinking_token_budget"), _get(body.get("thinking"), "budget_tokens")
    if any(budget not in (None, -1) for budget in budgets):
        return "thinking_token_budget"
    return "beam search" if body.get("use_beam_search") else None


def _get(value: object, key: str) -> object:
    return value.get(key) if isinstance(value, dict) else None
