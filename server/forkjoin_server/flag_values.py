"""What the command line says of one of our models: its fields are flags."""

from __future__ import annotations

import argparse
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from forkjoin_scheduler.errors import UsageError
from forkjoin_scheduler.wrong_fields import sentence

_Model = TypeVar("_Model", bound=BaseModel)


def given(args: argparse.Namespace, model: type[_Model]) -> _Model:
    """What ``args`` say of ``model``, one of the front end's. Raises UsageError naming a wrong flag."""
    return model(**values_given(args, model))


def values_given(args: argparse.Namespace, model: type[BaseModel]) -> dict[str, Any]:
    """The flags given that are fields of ``model``. Raises UsageError naming each that is out of range."""
    values = {name: getattr(args, dest_of(name), None) for name in model.model_fields if name != "dialect"}
    given = {name: value for name, value in values.items() if value is not None}
    check_fields(model, given)
    return given


def check_fields(model: type[BaseModel], values: dict[str, Any], called: str | None = None) -> None:
    """Raise UsageError naming each of ``values``, fields of ``model``, that can't be."""
    try:
        model.model_validate(values)
    except ValidationError as error:
        problems = [
            f"{called or flag_of(str(e['loc'][0]))}: {sentence(e)}, got {e['input']}"
            if e["loc"]
            else sentence(e)
            for e in error.errors()
        ]
        raise UsageError("; ".join(problems)) from error


def flag_of(name: str) -> str:
    """The flag of a field.

    >>> flag_of("max_forks")
    '--max-forks'
    """
    return f"--{name.replace('_', '-')}"


def dest_of(name: str) -> str:
    """Where vLLM's parser puts the flag of a field: out of the way of its own arguments."""
    return f"forkjoin_{name}"
