"""How long the texts of prompts may be, in vLLM's renderer."""

from __future__ import annotations

from typing import Any

from forkjoin_scheduler.errors import BadRequestOptions
from forkjoin_scheduler.request.compiled import Room
from forkjoin_server.http.error_bodies import texts
from forkjoin_server.vllm_seam.patching import put_in_place


def bound_texts(client: Any) -> None:
    """Let the renderer of ``client``, vLLM's, refuse each text that no context holds before it works on it.

    Patch: ``TokenizeParams._text_len_check``, which all texts pass before they are tokenised, and
    ``_apply_chat_template_async`` of the renderer.
    Symptom without it: with ``truncate_prompt_tokens``, and on /tokenize, vLLM tokenises a text of any
    length: 10 MB take the one thread that tokenises half a minute, and all others wait for it. Texts
    of any length are filled into templates on the event loop.
    Upstream: vLLM checks lengths only where nothing is cut off. Remove when it always does.
    """
    from vllm.renderers.hf import HfRenderer
    from vllm.renderers.params import TokenizeParams

    original, renderer = TokenizeParams._text_len_check, client.renderer
    max_model_len = client.model_config.max_model_len

    def check(num_chars: int, tokenizer: Any) -> None:
        room = Room(max_model_len, tokenizer.max_chars_per_token)
        if num_chars > room.max_chars:
            raise BadRequestOptions(
                f"the prompt: expected at most {room.max_chars} characters: the context holds "
                f"{room.max_tokens} tokens of at most {room.max_chars_per_token}, got {num_chars}: send "
                "less, also where it is to be truncated"
            )

    def _text_len_check(self: Any, tokenizer: Any, text: str) -> str:
        text = original(self, tokenizer, text)
        if tokenizer is not None:
            check(len(text), tokenizer)
        return text

    put_in_place(TokenizeParams, _text_len_check)
    if not isinstance(renderer, HfRenderer):  # the others hand other things to their templates
        return
    apply = renderer._apply_chat_template_async

    async def apply_chat_template(
        model_config: Any, tokenizer: Any, conversation: Any, *, tools: Any = None, **kwargs: Any
    ) -> Any:
        check(sum(map(len, texts([conversation, tools, kwargs]))), tokenizer)
        return await apply(model_config, tokenizer, conversation, tools=tools, **kwargs)

    renderer._apply_chat_template_async = apply_chat_template
