"""Asks a model that was not trained to fork to do so: its dialect's instruction, after the question."""

from __future__ import annotations

from typing import Any

from forkjoin_server.asgi import Json
from forkjoin_server.routes import BATCH, CHAT, MESSAGES, RESPONSES

#: Where each route has the conversation, and the type of a text part there.
_CONVERSATIONS = {
    CHAT: ("messages", "text"),
    BATCH: ("messages", "text"),
    MESSAGES: ("messages", "text"),
    RESPONSES: ("input", "input_text"),
}


def with_instruction(body: Json, path: str, instruction: str) -> Json:
    r"""``body`` with ``instruction`` at the end of the last user message; as it is where there is none.

    What stands between them is the instruction's to say. Nothing that is given is changed.

    >>> with_instruction({"input": "How far is it?"}, RESPONSES, "\nThink in parallel.")
    {'input': 'How far is it?\nThink in parallel.'}
    """
    if path not in _CONVERSATIONS:
        return body
    field, kind = _CONVERSATIONS[path]
    return body | {field: _told(body[field], instruction, kind)} if field in body else body


def _told(turns: Any, instruction: str, kind: str) -> Any:
    if isinstance(turns, str):
        return _added(turns, instruction, kind)
    if not isinstance(turns, list):
        return turns
    if turns and isinstance(turns[0], list):  # a batch of conversations
        return [_told(conversation, instruction, kind) for conversation in turns]
    for i in reversed(range(len(turns))):
        turn = turns[i]
        if isinstance(turn, dict) and turn.get("role") == "user":
            told = turn | {"content": _added(turn.get("content"), instruction, kind)}
            return [*turns[:i], told, *turns[i + 1 :]]
    return turns


def _added(content: Any, instruction: str, kind: str) -> Any:
    if isinstance(content, str):
        return content + instruction
    return [*content, {"type": kind, "text": instruction}] if isinstance(content, list) else content
