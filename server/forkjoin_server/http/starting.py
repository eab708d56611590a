"""What is done to vLLM's application when it starts: our parts go in, and faults of its own are mended."""

from __future__ import annotations

from typing import Any

from forkjoin_scheduler.dialects.dialect import Dialect
from forkjoin_server.access.settings import OverloadSettings
from forkjoin_server.asgi import Message
from forkjoin_server.http.app_state import client_of, flag_in, settings_of, vllm_config_of
from forkjoin_server.http.openapi import publish
from forkjoin_server.http.turns import give_turns
from forkjoin_server.operate import metrics
from forkjoin_server.request.grammar_trials import Trials
from forkjoin_server.request.handover import install
from forkjoin_server.request.wrong_bodies import stop_at_first_wrong_item
from forkjoin_server.vllm_seam.request.control_tokens import make_text_of_control_tokens
from forkjoin_server.vllm_seam.request.failed_requests import name_failed_requests
from forkjoin_server.vllm_seam.request.grammar_library import (
    keep_to_one_library,
    refuse_what_it_does_not_take,
    try_grammars,
)
from forkjoin_server.vllm_seam.request.refusals import log_refusals_in_a_line
from forkjoin_server.vllm_seam.request.request_heads import bound_heads
from forkjoin_server.vllm_seam.request.text_lengths import bound_texts
from forkjoin_server.vllm_seam.request.tool_calls import parse_token_by_token, skips_special_by_default


def equip(scope: Message) -> Trials | None:
    """Equip the application of a lifespan's ``scope``.

    Returns what tries grammars beside its engine client, to be closed when the lifespan ends.
    """
    app, client = scope["app"], client_of(scope)
    publish(app)
    stop_at_first_wrong_item(app)
    trials = None if client is None else _equip_client(scope, client)
    refuse_what_it_does_not_take()
    name_failed_requests()
    log_refusals_in_a_line(app.state)
    bound_heads(app.state, flag_in(scope, OverloadSettings, "client_stall_s"))
    return trials


def _equip_client(scope: Message, client: Any) -> Trials | None:
    """What reads, renders and sends requests on to the engine."""
    install(client)
    give_turns(client)
    settings = settings_of(scope)
    _start_metrics(scope, client, settings.dialect)
    make_text_of_control_tokens(client, vllm_config_of(scope), settings)
    bound_texts(client)
    keep_to_one_library(client)
    parse_token_by_token(skips_special_by_default(client.model_config))
    return try_grammars(client)


def _start_metrics(scope: Message, client: Any, dialect: Dialect | None) -> None:
    """Let each series of this server, which speaks ``dialect``, exist, at 0."""
    model_name = vllm_config_of(scope).model_config.served_model_name
    metrics.SERVER.start(model_name, client.engine_core.engine_ranks_managed, dialect)
