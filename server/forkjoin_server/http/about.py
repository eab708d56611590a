"""``GET /v1/forkjoin``: how this server forks, for clients that adapt to the model served."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from forkjoin_scheduler.dialects.dialect import Dialect
from forkjoin_scheduler.settings import Settings
from forkjoin_server.asgi import Json
from forkjoin_server.start.configuration import EMBEDDED_MODEL

PATH = "/v1/forkjoin"


def about(model_config: Any, settings: Settings) -> Json:
    """The answer: ``dialect`` is null where fork/join is switched off. Nothing of it is secret."""
    dialect = settings.dialect
    return {
        "object": "forkjoin",
        "version": version("vllm-forkjoin"),
        "is_embedded_model": getattr(model_config, "model", None) == str(EMBEDDED_MODEL),
        "max_model_len": getattr(model_config, "max_model_len", None),
        "dialect": None if dialect is None else _dialect(dialect),
        "limits": settings.limits.model_dump(mode="json"),
    }


def _dialect(dialect: Dialect) -> Json:
    return {
        "name": dialect.name,
        "source": dialect.source,
        "trigger": dialect.trigger if dialect.tags_are == "tokens" else None,
        "join": dialect.join.kind,
        "parent_waits": dialect.join.waits,
        "max_depth": dialect.max_depth,
    }
