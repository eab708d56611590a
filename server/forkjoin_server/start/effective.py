"""What a server was started with and where each value comes from: flag > environment > file > default."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from forkjoin_scheduler.dialects.limits import Limits
from forkjoin_scheduler.redact import shown
from forkjoin_scheduler.settings import KEY, Settings
from forkjoin_server.start.dialect_choice import Choice
from forkjoin_server.start.flags import own_flags


@dataclass(frozen=True)
class Given:
    """vLLM's parsed arguments, and which of them were given where."""

    args: argparse.Namespace
    #: By destination of the argument: "flag", the variable, or the file.
    origins: Mapping[str, str]
    #: The dialect, where it was not given.
    choice: Choice | None = None


@dataclass(frozen=True)
class Value:
    """One line of the effective configuration."""

    name: str
    value: str
    origin: str


def effective(given: Given) -> list[Value]:
    """Every setting of fork/join's own, then what else was given; secrets hidden."""
    args, origins = given.args, given.origins
    settings = args.additional_config.get(KEY)
    own = {action.dest: name for name, action in own_flags().items()}
    values = [Value("model", shown("", args.model_tag or args.model), origins.get("model", "default"))]
    for dest, name in own.items():
        value, default = _value(settings, args, dest)
        values.append(Value(name, shown(name, value), origins.get(dest, default)))
    # additional_config holds the settings by now.
    others = sorted(origins.keys() - own.keys() - {"model", "additional_config"})
    return values + [
        Value(dest.replace("_", "-"), shown(dest, getattr(args, dest, None)), origins[dest])
        for dest in others
    ]


def _value(settings: dict[str, Any] | None, args: argparse.Namespace, dest: str) -> tuple[Any, str]:
    """The value of one of our flags, and where it comes from if it was not given."""
    field = dest.removeprefix("forkjoin_")
    if settings is not None and field in Limits.model_fields:
        limit = settings["limits"][field]
        return "no limit" if limit is None else limit, f"dialect {settings['dialect']['name']}"
    if settings is not None and field in Settings.model_fields and field != "dialect":
        return settings[field], "default"
    return getattr(args, dest, None), "default"


def lines(values: list[Value]) -> list[str]:
    """A table for a reader."""
    names, width = max(len(v.name) for v in values), min(max(len(v.value) for v in values), 48)
    head = "fork/join configuration (flag > environment > file > default):"
    return [head, *(f"  {v.name:<{names}}  {v.value:<{width}}  {v.origin}" for v in values)]
