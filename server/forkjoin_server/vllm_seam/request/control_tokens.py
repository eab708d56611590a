"""Control tokens in the prompts of chats: which the served model has, and who keeps them out."""

from __future__ import annotations

from typing import Any

from forkjoin_scheduler.settings import Settings
from forkjoin_server.request.control_tokens import ControlTokens
from forkjoin_server.vllm_seam.request import renderers
from forkjoin_server.vllm_seam.request.harmony import refuse_in_harmony
from forkjoin_server.vllm_seam.tokenizers import bind_to_model


def make_text_of_control_tokens(client: Any, vllm_config: Any, settings: Settings) -> None:
    """Let the renderer of ``client``, vLLM's, do with control tokens in chats as ``settings`` say."""
    dialect, what = settings.dialect, settings.control_tokens_in_prompts
    if dialect is None or what == "allow":
        return
    bound, renderer = bind_to_model(dialect, vllm_config), client.renderer
    # Tokenizers that find no control tokens in texts do not have these.
    added: dict[str, int] = getattr(renderer.tokenizer, "get_added_vocab", dict)()
    tokens = ControlTokens.of(bound.dialect.control_tokens, added, bound.tokenizer)
    if not tokens.ids:
        return
    renderers.install(renderer, renderers.Policy(tokens, what == "refuse", dialect.instruction))
    if what == "refuse" and vllm_config.model_config.hf_config.model_type == "gpt_oss":
        refuse_in_harmony(tokens, dialect.instruction)


def check_renderer(model_config: Any, settings: Settings) -> None:
    """Raise UsageError if the served model's renderer can't do with control tokens as ``settings`` say."""
    from vllm.renderers.registry import RENDERER_REGISTRY
    from vllm.tokenizers.registry import tokenizer_args_from_config

    if settings.control_tokens_in_prompts != "allow":
        mode, *_ = tokenizer_args_from_config(model_config)
        renderers.check_known(RENDERER_REGISTRY.load_renderer_cls(mode))
