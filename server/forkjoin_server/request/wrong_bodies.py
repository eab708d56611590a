"""Bodies that are no request: each is refused, at the first item that is wrong."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Iterator
from typing import Any, get_args

from pydantic import BaseModel, TypeAdapter
from pydantic_core import SchemaValidator

from forkjoin_scheduler.excerpt import cut

#: Kinds of pydantic's schemas that continue after a wrong item, unless they fail fast.
_LISTS = ("list", "tuple", "set", "frozenset")


def stop_at_first_wrong_item(app: Any) -> None:
    """Let all routes of ``app``, vLLM's, refuse a list in a body at the first item that is wrong.

    Patch: the validators of the routes' request models, and all that were made of these models already.
    Symptom without it: pydantic goes on to the end of a list, and notes of each item what each type that it
    might be of says against it. 15 KB of ``{"input": [{}, {}, …]}`` to /v1/responses are a million errors:
    20 s in which the event loop answers nobody, and 5 GB; 60 KB end the server for want of memory.
    Upstream: vLLM bounds what an answer repeats of the errors, not their number. Remove when it does.
    """
    fields = [field for route in app.routes if (field := getattr(route, "body_field", None)) is not None]
    models = {model for field in fields for model in _models(field.field_info.annotation)}
    for model in models:
        model.__pydantic_validator__ = _failing_fast(model.__pydantic_core_schema__)
    adapters = [o for o in _objects() if type(o) is TypeAdapter and o._type in models]
    for adapter in [*adapters, *(field._type_adapter for field in fields)]:
        adapter.validator = _failing_fast(adapter.core_schema)


def _objects() -> list[Any]:
    """All objects that the garbage collector knows, those that an engine in this process froze too."""
    frozen = gc.get_freeze_count() > 0
    gc.unfreeze()
    objects = gc.get_objects()
    if frozen:
        gc.freeze()
    return objects


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The request models that a body may be."""
    for kind in get_args(annotation) or (annotation,):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield kind


def _failing_fast(schema: Any) -> SchemaValidator:
    return SchemaValidator(_hardened(schema, {}), _use_prebuilt=False)


def _hardened(schema: Any, done: dict[int, Any]) -> Any:
    """``schema`` in which all lists fail at once, and no check of vLLM's raises what is no refusal.

    ``done``: by their ids, parts that were made already.
    """
    if isinstance(schema, (list, tuple)):
        return type(schema)(_hardened(part, done) for part in schema)
    if not isinstance(schema, dict):
        return schema
    if id(schema) not in done:
        made = done[id(schema)] = {}
        made |= {name: _hardened(part, done) for name, part in schema.items()}
        if schema.get("type") in _LISTS:
            made["fail_fast"] = True
        if schema.get("type") == "function-before":
            made["function"] = made["function"] | {"function": _refusing(made["function"]["function"])}
    return done[id(schema)]


def _refusing(check: Callable[..., Any]) -> Callable[..., Any]:
    """``check``, which sees what a client sent before its types are known, but refuses what it stumbles over.

    Symptom without it: ``{"structured_outputs": 0}`` is a 500, with a traceback in the log.
    """

    @functools.wraps(check)
    def checked(*args: Any) -> Any:
        try:
            return check(*args)
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise ValueError(
                f"expected fields of the types that are documented: {cut(str(error))}"
            ) from error

    return checked
