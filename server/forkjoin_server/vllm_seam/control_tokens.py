"""Control tokens in the prompts of chats, in vLLM's renderer."""

from __future__ import annotations

import logging
from typing import Any

from forkjoin_scheduler.settings import Settings
from forkjoin_server import prompts
from forkjoin_server.control_tokens import ControlTokens
from forkjoin_server.vllm_seam.tokenizers import bind_to_model

#: Beneath vLLM's, whose handler, level and format it so has.
LOG = logging.getLogger("vllm.forkjoin.server")


def make_text_of_control_tokens(client: Any, vllm_config: Any, settings: Settings) -> None:
    """Let the renderer of ``client``, vLLM's, do with control tokens in chats as ``settings`` say."""
    dialect, policy = settings.dialect, settings.control_tokens_in_prompts
    if dialect is None or policy == "allow":
        return
    bound, renderer = bind_to_model(dialect, vllm_config), client.renderer
    # Tokenizers that find no control tokens in texts do not have these.
    added: dict[str, int] = getattr(renderer.tokenizer, "get_added_vocab", dict)()
    tokens = ControlTokens.of(bound.dialect.control_tokens, added, bound.tokenizer)
    is_done = not tokens.ids or prompts.install(
        renderer, tokens, refuses=policy == "refuse", instruction=dialect.instruction
    )
    if not is_done:
        LOG.warning(
            "--control-tokens-in-prompts %s: the model's renderer, %s, makes prompts in a way of its own, so "
            "control tokens in messages stay control tokens",
            policy,
            type(renderer).__name__,
        )
