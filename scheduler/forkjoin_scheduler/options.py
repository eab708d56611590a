"""What a request may say about fork/join: the ``forkjoin`` field of its body."""

from __future__ import annotations

import json
from typing import Any

from pydantic import ConfigDict, ValidationError

from forkjoin_scheduler.dialect import Limits
from forkjoin_scheduler.errors import BadRequestOptions


class RequestOptions(Limits):
    """The limits of one request, the off switch, and whether it wants to see its threads."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    enabled: bool = True
    include_threads: bool = False

    def limits(self, defaults: Limits) -> Limits:
        """``defaults`` with what the request itself set."""
        return defaults.model_copy(update={n: getattr(self, n) for n in self._set_limits()})

    def check_caps(self, caps: Limits) -> None:
        """Raise BadRequestOptions naming each limit that goes over the server's own."""
        problems = []
        for name in self._set_limits():
            mine, cap = getattr(self, name), getattr(caps, name)
            if cap is not None and (mine is None or mine > cap):
                flag = f"--{name.replace('_', '-')}"
                problems.append(f"forkjoin.{name}: expected at most {cap}, the server's {flag}, got {mine}")
        if problems:
            raise BadRequestOptions("; ".join(problems))

    def _set_limits(self) -> list[str]:
        return [n for n in Limits.model_fields if n in self.model_fields_set]


def parse_options(value: Any) -> RequestOptions:
    """Validate a ``forkjoin`` object, or its JSON text (vLLM's ``vllm_xargs`` hold no objects).

    Raises BadRequestOptions naming each wrong key.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise BadRequestOptions(f"forkjoin: expected an object or its JSON, {error}") from error
    if not isinstance(value, dict):
        raise BadRequestOptions(f"forkjoin: expected an object, got {type(value).__name__}")
    try:
        return RequestOptions.model_validate(value)
    except ValidationError as error:
        problems = "; ".join(
            f"forkjoin.{'.'.join(map(str, e['loc']))}: {e['msg']}, got {e['input']!r}" for e in error.errors()
        )
        legal = ", ".join(sorted(RequestOptions.model_fields))
        raise BadRequestOptions(f"{problems}. Legal keys: {legal}") from error
