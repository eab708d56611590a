"""``/generative_scoring`` and ``/v1/systemone``: requests that do not fork, and become many prompts.

vLLM joins the query with each of the items, and makes all these prompts in one go, on the event loop. So
their size is checked before.
"""

from __future__ import annotations

from typing import Any

from forkjoin_scheduler.errors import BadRequestOptions
from forkjoin_scheduler.request.compiled import Room
from forkjoin_server.asgi import Json
from forkjoin_server.request.shape import check_beside_prompt
from forkjoin_server.routes import DECISIONS, SCORING

#: By path, where the body has what each becomes a prompt.
_PARTS = {SCORING: "items", DECISIONS: "questions"}


def count_parts(body: Json, path: str) -> int:
    """How many prompts ``body`` becomes at ``path``; 1 where vLLM will refuse it, and on others."""
    parts = body.get(_PARTS[path]) if path in _PARTS else None
    return max(len(parts), 1) if isinstance(parts, (list, dict)) else 1


def check_scoring(body: Json, num_bytes: int, room: Room, max_tokens: int) -> None:
    """Raise BadRequestOptions if the prompts of ``body``, of ``num_bytes``, exceed ``max_tokens``.

    A character counts as a token. All texts together are to fit one context: they are tokenised in one go.
    """
    given = body.get("items")
    items = given if isinstance(given, list) else []
    check_beside_prompt(body, num_bytes, len(items))
    num_chars = sum(len(text) for text in (body.get("query"), *items) if isinstance(text, str))
    if num_chars > room.max_chars:
        raise BadRequestOptions(
            f"query, items: expected at most {room.max_chars} characters: the context holds "
            f"{room.max_tokens} tokens of at most {room.max_chars_per_token}, got {num_chars}: "
            "send fewer items at a time",
            field="items",
        )
    query = _length(body.get("query"))
    if (num := sum(min(query + _length(item), room.max_tokens) for item in items)) > max_tokens:
        raise BadRequestOptions(
            f"query, items: expected at most {max_tokens} tokens over all prompts, each the query and one "
            "item (with a dialect the server's --max-request-tokens; a character of a text counts as one), "
            f"got up to {num}: send fewer items at a time",
            field="items",
        )


def _length(given: Any) -> int:
    return len(given) if isinstance(given, (str, list)) else 0
