"""Control tokens in the prompts of chats, as the operator says (see ``control_tokens.py``).

``neutralise``: they are text. ``refuse``: they are a 400, but in an assistant's message, where they are text.
``allow``: they are control tokens, as in vLLM. Prompts of /v1/completions have no template and stay raw.

Patch: ``_apply_chat_template_async`` and ``_tokenize_prompt_async`` of the renderer, which each chat
passes on whatever route.
Symptom without it: a model reads ``<Thread>`` in a question about Java as the beginning of a thread.
Upstream: vLLM tokenises the whole text of a template, and can't tell who wrote what. Remove when it can.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from forkjoin_server.control_tokens import ControlTokens, Marked, check_has_none

#: What templates and tokenizers are told, which is no text of a prompt.
_NO_TEXT = ("chat_template", "padding", "return_tensors", "tokenize", "return_dict")


def install(renderer: Any, tokens: ControlTokens, *, refuses: bool, instruction: str | None) -> bool:
    """Let ``renderer`` of vLLM make text of ``tokens`` in chats; whether it is of the kind that can.

    ``instruction``: the end of a user's message that the server itself writes there.
    """
    if not hasattr(renderer, "_apply_chat_template_async"):
        return False
    apply, tokenize = renderer._apply_chat_template_async, renderer._tokenize_prompt_async

    async def apply_chat_template(
        model_config: Any, tokenizer: Any, conversation: Any, *, tools: Any = None, **kwargs: Any
    ) -> Any:
        if refuses:
            check_has_none(tokens, [_without(instruction, message) for message in conversation], tools)
        # What the client gives for the template to write, documents say, is its text, too.
        texts = {name: value for name, value in kwargs.items() if name not in _NO_TEXT}
        if tokens.first_in([conversation, tools, texts]) is None:
            return await apply(model_config, tokenizer, conversation, tools=tools, **kwargs)
        conversation, tools = tokens.marked(conversation, kept=instruction), tokens.marked(tools)
        kwargs |= tokens.marked(texts)
        is_tokenised = kwargs.get("tokenize", True)
        text = await apply(model_config, tokenizer, conversation, tools=tools, **kwargs | {"tokenize": False})
        if not is_tokenised:
            return Marked(text)
        plain, starts = tokens.plain(text)
        encode = partial(tokenizer.encode, plain, add_special_tokens=False)
        ids = await asyncio.get_running_loop().run_in_executor(renderer._executor, encode)
        return [i for ids in tokens.neutralised(ids, plain, starts) for i in ids]

    async def tokenize_prompt(prompt: Any, params: Any) -> Any:
        marked = prompt["prompt"]
        if not isinstance(marked, Marked):
            return await tokenize(prompt, params)
        plain, starts = tokens.plain(marked)
        result = await tokenize({**prompt, "prompt": plain}, params)
        pieces = tokens.neutralised(result["prompt_token_ids"], plain, starts)
        if (offsets := result.get("prompt_token_offsets")) is not None:
            spread = zip(offsets, pieces, strict=True)
            result["prompt_token_offsets"] = [span for span, ids in spread for _ in ids]
        result["prompt_token_ids"] = [i for ids in pieces for i in ids]
        return result

    renderer._apply_chat_template_async = apply_chat_template
    renderer._tokenize_prompt_async = tokenize_prompt
    return True


def _without(instruction: str | None, message: Any) -> Any:
    """``message`` without the end that the server itself writes."""
    content = message.get("content")
    if instruction and isinstance(content, str):
        return {**message, "content": content.removesuffix(instruction)}
    if instruction and isinstance(content, list):
        parts = [part for part in content if not (isinstance(part, dict) and part.get("text") == instruction)]
        return {**message, "content": parts}
    return message
