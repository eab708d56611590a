"""The server's reasoning parser: whether a request still reasons where it forks by itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from forkjoin_scheduler.request.options import CompiledOptions


def has_reasoning_parser(vllm_config: Any) -> bool:
    """Whether vLLM holds grammars back until reasoning has ended."""
    config = getattr(vllm_config, "structured_outputs_config", None)
    return bool(config is not None and config.reasoning_parser and not config.enable_in_reasoning)


def why_not_reasoning(
    client: Any, options: CompiledOptions, prompt_ids: list[int], params: Any, more: Mapping[str, Any]
) -> str | None:
    """Why a structured request with branches and a closing does not reason in its branches; None if it does.

    ``more``: what vLLM's handler calls the engine with beside the prompt and ``params``.
    """
    if more.get("reasoning_ended"):
        return "structured output and a prompt that ends the reasoning"
    if options.structured is not None:
        return None
    from vllm.reasoning import ReasoningParserManager

    from forkjoin_scheduler.vllm_seam.starts.answers import reasoning_ends
    from forkjoin_scheduler.vllm_seam.threads.sampling import can_ban
    from forkjoin_scheduler.vllm_seam.tokenizer import EngineTokenizer

    tokenizer = client.renderer.get_tokenizer()
    name = client.vllm_config.structured_outputs_config.reasoning_parser
    make = ReasoningParserManager.get_reasoning_parser(name)
    reasoner = make(tokenizer, **(more.get("reasoning_parser_kwargs") or {}))
    ends = reasoning_ends(reasoner, EngineTokenizer(tokenizer))
    if more.get("reasoning_ended") is None and reasoner.is_reasoning_end(prompt_ids):
        return "structured output and a prompt that ends the reasoning"
    if ends is None or not can_ban(params, ends):
        return f"structured output and reasoning of {name}, whose end threads can't be kept from writing"
    for branch in options.branches or ():
        if reasoner.is_reasoning_end_streaming(branch.token_ids, branch.token_ids):
            return f"structured output and the end of the reasoning in the text of branch {branch.title!r}"
    return None
