"""An answer in a file: a chat completion as the server sends it, with its lanes where times are known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from forkjoin.answer import ROOT, Answer
from forkjoin.errors import ForkJoinError, StreamBroken
from forkjoin.lanes import Lane, Lanes
from forkjoin.parsing import fault, parsed
from forkjoin.reading import AnswerReader
from forkjoin.sse import SseDecoder
from forkjoin.step_lanes import lanes_in_steps

_LANES = TypeAdapter(list[Lane])


@dataclass(frozen=True)
class Saved:
    """An answer, and its lanes over ``unit``."""

    answer: Answer
    lanes: Lanes
    unit: Literal["s", "steps"]


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


def read_saved(text: str) -> Saved:
    """The answer in ``text``: a chat completion or a response, in JSON, or a stream as it came from the wire.

    Raises ForkJoinError if it is none of these, or has no threads to draw.
    """
    try:
        saved = _read(text)
    except RecursionError as error:
        raise ForkJoinError("expected threads that fork some levels deep, got hundreds of levels") from error
    if not saved.answer.threads:
        raise ForkJoinError(
            "expected an answer with threads, got one without: ask for include_threads, and what forks"
        )
    return saved


def _read(text: str) -> Saved:
    if text.lstrip().startswith(("data:", "event:", ":")):
        return _from_stream(text)
    try:
        given = parsed(text)
        if given.get("object") == "response":
            answer, lanes = _from_response(given), None
        else:
            answer, lanes = Answer.of(given), given.get("lanes")
        if lanes is not None:
            return Saved(answer, Lanes.of(_LANES.validate_python(lanes)), "s")
        return Saved(answer, lanes_in_steps(answer), "steps")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        said = fault(error) if isinstance(error, ValidationError) else f"{error!r}"
        raise ForkJoinError(
            f"expected a chat completion, a response or a stream of the server's, got something else ({said})"
        ) from error


def _from_stream(text: str) -> Saved:
    reader, forks = AnswerReader(), []
    for event in SseDecoder().feed(text.encode() + b"\n\n"):
        if event == "[DONE]":
            break
        try:
            chunk = parsed(event)
        except ValueError as error:
            raise StreamBroken(f"expected JSON in the stream, got {event[:100]!r}") from error
        forks += [[t.index for t in e.threads] for e in reader.feed(chunk) if e.type == "forked"]
    answer = reader.end().answer
    return Saved(answer, lanes_in_steps(answer, forks), "steps")


def _from_response(response: dict[str, Any]) -> Answer:
    """The answer in a response: its threads are ``reasoning`` items with a ``thread``."""
    items = response["output"]
    usage = response.get("usage") or {}
    counts = {
        "prompt_tokens": usage.get("input_tokens", 0),
        "completion_tokens": usage.get("output_tokens", 0),
        "total_tokens": usage.get("total_tokens", 0),
        "forkjoin": usage.get("forkjoin"),
    }
    threads = [i["thread"] | {"content": _text(i)} for i in items if "thread" in i]
    return Answer.model_validate(
        {
            "id": response["id"],
            "model": response.get("model") or "",
            "content": "".join(_text(item) for item in items if "thread" not in item),
            "threads": [{"parent_id": ROOT, **thread} for thread in threads],
            "finish_reason": "stop" if response.get("status") == "completed" else "length",
            "usage": counts,
        }
    )


def _text(item: dict[str, Any]) -> str:
    return "".join(part.get("text") or "" for part in item.get("content") or [])
