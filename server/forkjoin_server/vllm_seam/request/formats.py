"""What vLLM makes of a ``response_format``, checked as it checks a request's own."""

from __future__ import annotations

from dataclasses import fields
from typing import Any


def constraint_of(client: Any, response_format: dict[str, Any]) -> dict[str, Any] | None:
    """What the engine is told of ``response_format``: fields of its structured outputs, and the ``backend``.

    None for plain text. Takes as long as to make a grammar of it. Raises ValueError saying what is wrong.
    """
    from pydantic import TypeAdapter, ValidationError
    from vllm.entrypoints.generate.base.protocol import (
        AnyResponseFormat,
        structured_outputs_from_response_format,
    )
    from vllm.sampling_params import SamplingParams

    try:
        parsed: Any = TypeAdapter(AnyResponseFormat).validate_python(response_format)
    except ValidationError as error:
        (first, *_) = error.errors(include_url=False, include_context=False, include_input=False)
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
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
