"""Structured output beside forks: for what of a request it holds, told by its body and its options."""

from __future__ import annotations

from forkjoin_scheduler.dialects.dialect import Dialect
from forkjoin_scheduler.errors import BadRequestOptions
from forkjoin_scheduler.request.options import CompiledOptions, RequestOptions
from forkjoin_server.asgi import Json

_AT_ONCE = "structured output from the first token (forkjoin.structured: answer says otherwise)"


def is_structured(body: Json) -> bool:
    """Whether vLLM will constrain what is generated, in any of the words that its routes have for it."""
    formats = [body.get("response_format"), _get(body.get("text"), "format")]
    return (
        body.get("structured_outputs") is not None
        or any(_get(f, "type") not in (None, "text") for f in formats)
        or _get(body.get("output_config"), "format") is not None
        or _forces_a_tool(body.get("tool_choice"))
    )


def block_reason(options: RequestOptions | CompiledOptions, reasons: bool) -> str | None:
    """Why a structured request will not fork, None if it may.

    ``reasons``: whether the server has a reasoning parser; vLLM's grammars begin after the reasoning.
    """
    if options.best_of is not None or options.rounds is not None:  # each thread is an answer
        return None
    if options.branches is not None and options.closing is None:
        return "structured output and no closing, after which the answer would begin"
    return None if reasons or options.structured is not None else _AT_ONCE


def check_place(options: RequestOptions, dialect: Dialect | None) -> None:
    """Raise BadRequestOptions if nobody knows where the answer begins for which a grammar is to hold."""
    follows_closing = options.branches is not None and options.best_of is None
    if options.structured is None or follows_closing:
        return
    if dialect is None:
        raise BadRequestOptions(
            "forkjoin.structured: expected a server that forks, but it runs with --dialect none: leave it out"
        )
    if dialect.answer is None or (options.best_of is not None and dialect.answer.behind_join):
        beside = " in each of best_of's threads" if dialect.answer is not None else ""
        raise BadRequestOptions(
            f"forkjoin.structured: expected a dialect that says where its answer begins{beside} (its key "
            f"`answer`), but {dialect.name} does not: leave it out, or serve with --reasoning-parser"
        )


def _forces_a_tool(choice: object) -> bool:
    if choice == "required" or _get(choice, "mode") == "required":
        return True
    return _get(choice, "type") in ("function", "tool", "any", "custom")


def _get(value: object, key: str) -> object:
    return value.get(key) if isinstance(value, dict) else None
