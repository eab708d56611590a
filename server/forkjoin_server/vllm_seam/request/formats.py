"""What vLLM makes of a ``response_format``, checked as it checks a request's own."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, get_args

from forkjoin_scheduler.excerpt import excerpt
from forkjoin_scheduler.wrong_fields import expected_and_got, place


def constraint_of(client: Any, response_format: dict[str, Any]) -> dict[str, Any] | None:
    """What the engine gets for ``response_format``: fields of its structured outputs, and the ``backend``.

    None for plain text. Takes as long as to make a grammar of it. Raises ValueError saying what is wrong.
    """
    from vllm.entrypoints.generate.base.protocol import structured_outputs_from_response_format
    from vllm.sampling_params import SamplingParams

    parsed = _parsed(response_format)
    if parsed.type == "json_schema" and (
        parsed.json_schema is None or parsed.json_schema.json_schema is None
    ):
        raise ValueError("expected json_schema.schema beside the type json_schema, got none")
    wanted = structured_outputs_from_response_format(None, parsed)
    if wanted is None:
        return None
    config = client.vllm_config.structured_outputs_config
    params = SamplingParams(structured_outputs=wanted)
    try:
        params._validate_structured_outputs(client.model_config, config, client.renderer.get_tokenizer())
    except Exception as error:  # of whatever kind the backends raise of a client's schema
        raise ValueError(str(error)) from error
    backend = wanted._backend
    if config.backend == "auto" and backend != "xgrammar":
        raise ValueError("expected a schema that xgrammar takes, which the threads of this server share")
    given = {f.name: getattr(wanted, f.name) for f in fields(wanted) if f.init}
    return {name: value for name, value in given.items() if value not in (None, False)} | {"backend": backend}


def _parsed(response_format: dict[str, Any]) -> Any:
    """``response_format`` as vLLM reads it. Raises ValueError for the first field that is wrong."""
    from pydantic import ValidationError
    from vllm.entrypoints.generate.base.protocol import (
        LegacyStructuralTagResponseFormat,
        ResponseFormat,
        StructuralTagResponseFormat,
    )

    tags = (
        LegacyStructuralTagResponseFormat if "structures" in response_format else StructuralTagResponseFormat
    )
    # Chosen here: of a union, pydantic tells what each of its models says against it.
    models = {kind: m for m in (ResponseFormat, tags) for kind in get_args(m.model_fields["type"].annotation)}
    kind = response_format.get("type")
    model = models.get(kind) if isinstance(kind, str) else None
    if model is None:
        got = excerpt(kind) if "type" in response_format else "none"
        raise ValueError(f"expected a type, one of {', '.join(models)}, got {got}")
    try:
        return model.model_validate(response_format)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = place("", first["loc"]).lstrip(".")
        raise ValueError(f"{where}: {expected_and_got(first)}") from error
