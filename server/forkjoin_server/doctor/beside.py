"""What the server does beside forks: drafts, grouped attention, and structured answers."""

from __future__ import annotations

from typing import Any

from forkjoin_scheduler.dialects.dialect import Dialect
from forkjoin_scheduler.settings import KEY, Settings
from forkjoin_server.doctor.check import Check, ok


def drafts(vllm_config: Any) -> Check:
    """Who guesses tokens, of threads as of requests. Expects options that go together with forks."""
    speculative = vllm_config.speculative_config
    if speculative is None:
        return ok("drafts", "none; with --speculative-config threads are drafted for, too")
    settings = Settings.model_validate(vllm_config.additional_config.get(KEY, {}))
    family = ", where it finds none those of its family" if settings.draft_from == "family" else ""
    return ok("drafts", f"of {speculative.num_speculative_tokens} tokens by {speculative.method}{family}")


def attention(vllm_config: Any) -> Check:
    """Whether KV that rows share is read once. Layers and devices are looked at when a server starts."""
    from forkjoin_scheduler.vllm_seam.grouped import eligible

    settings = Settings.model_validate(vllm_config.additional_config.get(KEY, {}))
    if not settings.groups_attention:
        return ok("attention", f"not grouped: --grouped-attention {settings.grouped_attention}")
    if reason := eligible.server_reason(vllm_config):
        return ok("attention", f"not grouped: {reason}")
    return ok("attention", "grouped, if the model's layers and a check at start allow it")


def answers(vllm_config: Any, dialect: Dialect) -> Check:
    """From where a grammar holds that a request asks for; in front of it the reasoning forks."""
    if parser := vllm_config.structured_outputs_config.reasoning_parser:
        return ok("answers", f"JSON and forced tools hold after the reasoning, by parser {parser}")
    if dialect.answer is not None:
        return ok("answers", 'JSON and forced tools hold for the answer with {"structured": "answer"}')
    return ok("answers", "JSON and forced tools hold from the first token: such requests do not fork")
