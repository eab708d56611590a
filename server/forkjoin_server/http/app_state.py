"""What vLLM's application has in its state, which is empty where there is no engine, as in some tests."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from forkjoin_scheduler.settings import KEY, Settings
from forkjoin_server.asgi import Message
from forkjoin_server.flag_values import dest_of
from forkjoin_server.request.field import DEFAULTS


def _state(scope: Message) -> Any:
    return getattr(scope.get("app"), "state", None)


def vllm_config_of(scope: Message) -> Any:
    """VLLM's configuration; None where there is no engine."""
    return getattr(_state(scope), "vllm_config", None)


def client_of(scope: Message) -> Any:
    """VLLM's engine client; None where there is no engine."""
    return getattr(_state(scope), "engine_client", None)


def num_engines_of(scope: Message) -> int:
    """How many engines this API server sends requests to; 1 where there is none."""
    if (vllm_config := vllm_config_of(scope)) is None:
        return 1
    parallel = vllm_config.parallel_config
    return int(
        parallel.data_parallel_size_local if parallel.local_engines_only else parallel.data_parallel_size
    )


def settings_of(scope: Message) -> Settings:
    """The dialect and the limits, as the operator gave them to the engine."""
    vllm_config = vllm_config_of(scope)
    given = vllm_config.additional_config.get(KEY) if vllm_config is not None else None
    return Settings.model_validate(given) if given else DEFAULTS


def flag_in(scope: Message, model: type[BaseModel], field: str) -> Any:
    """What the operator gave as the flag of a ``field`` of ``model``; its default where nothing was given."""
    args = getattr(_state(scope), "args", None)
    return getattr(args, dest_of(field), model.model_fields[field].default)
