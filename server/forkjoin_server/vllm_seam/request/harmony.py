"""Control tokens in the prompts of gpt-oss, which vLLM makes in Harmony's format and not by a renderer.

Harmony's encoding tokenises what a message says as ordinary text, whatever it spells; the server's own
instruction, too. So nothing is to be neutralised, and ``allow`` allows nothing.
"""

from __future__ import annotations

from typing import Any

from forkjoin_server.request.control_tokens import ControlTokens, refusal
from forkjoin_server.vllm_seam.patching import put_in_place


def refuse_in_harmony(tokens: ControlTokens, instruction: str | None) -> None:
    """Refuse chats of gpt-oss that spell ``tokens``, but for assistants' messages.

    Patch: ``render_for_completion``, which both chat completions and responses go through.
    Symptom without it: ``--control-tokens-in-prompts refuse`` lets them pass, as text.
    Upstream: vLLM knows no such refusal. Remove when it does.
    """
    from vllm.renderers import online_renderer

    render = online_renderer.render_for_completion

    def render_for_completion(messages: list[Any]) -> list[int]:
        for message in messages:
            role = message.author.role.value
            if role != "assistant" and (tag := tokens.first_in(message.to_dict(), instruction)):
                raise refusal(f"what the {role} says", tag)
        ids: list[int] = render(messages)
        return ids

    put_in_place(online_renderer, render_for_completion)
