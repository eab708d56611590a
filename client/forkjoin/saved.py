"""An answer in a file: a chat completion as the server sends it, with its lanes where times are known."""

from __future__ import annotations

from typing import Any

from forkjoin.answer import Answer
from forkjoin.lanes import Lanes


def as_completion(answer: Answer, lanes: Lanes | None = None) -> dict[str, Any]:
    """``answer`` in the shape of a chat completion, and its lanes in seconds."""
    message: dict[str, Any] = {"role": "assistant", "content": answer.content}
    if answer.reasoning:
        message["reasoning"] = answer.reasoning
    if answer.tool_calls:
        message["tool_calls"] = answer.tool_calls
    message["threads"] = [thread.model_dump(exclude_unset=True) for thread in answer.threads]
    completion = {
        "id": answer.id,
        "object": "chat.completion",
        "model": answer.model,
        "choices": [{"index": 0, "message": message, "finish_reason": answer.finish_reason}],
        "usage": answer.usage.model_dump(exclude_none=True) if answer.usage else None,
    }
    if lanes is not None:
        completion["lanes"] = [lane.model_dump(exclude={"text"}) for lane in lanes.in_order()]
    return completion
