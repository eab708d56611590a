"""Requests that fork/join leaves alone, told by their body.

The engine decides for itself, by what vLLM makes of a request; this is to say so in time: to refuse
a fork that the client asks for, and to ask no model for threads that would not run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from forkjoin_server.asgi import Json

#: Types of content parts, which also are the keys of their payload (a part may go without a type).
_MEDIA = re.compile(r"(input_)?(image|audio|video|file)(_url|_pil|_embeds)?|document")


def bypass_reason(body: Json) -> str | None:
    """Why a request with this body will not fork, None if it may.

    Of structured output, ``structured.py`` knows more.
    """
    has_parts = bool(body.get("features") or body.get("content_parts"))  # of tokens in, tokens out
    if has_parts or any(map(_is_media, _objects(body.get("messages"), body.get("input")))):
        return "multimodal content"
    if body.get("prompt_embeds") is not None:
        return "prompt embeddings"
    budgets = body.get("thinking_token_budget"), _get(body.get("thinking"), "budget_tokens")
    if any(budget not in (None, -1) for budget in budgets):
        return "thinking_token_budget"
    return "beam search" if body.get("use_beam_search") else None


def _is_media(part: Json) -> bool:
    names = [str(part.get("type")), *(key for key, value in part.items() if value is not None)]
    return any(_MEDIA.fullmatch(name) for name in names)


def _objects(*roots: object) -> Iterator[Json]:
    """Messages, and the parts of their content. No recursion: how deep they nest is the client's choice."""
    left = list(roots)
    while left:
        item = left.pop()
        if isinstance(item, list):
            left += item
        elif isinstance(item, dict):
            yield item
            left.append(item.get("content"))


def _get(value: object, key: str) -> object:
    return value.get(key) if isinstance(value, dict) else None
