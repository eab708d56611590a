"""A request that is refused is a line in the log."""

from __future__ import annotations

import logging
from typing import Any

from forkjoin_scheduler.errors import Overloaded
from forkjoin_scheduler.excerpt import cut

#: Beneath these vLLM answers requests.
_LOGGERS = ("vllm.entrypoints.", "vllm.renderers.")
_MAX_CHARS = 300


class OneLine(logging.Filter):
    """Lets every record through; one of an error of a client's without its traceback, and cut to a line."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = _behind(record.exc_info[1] if record.exc_info else None)
        if isinstance(error, Exception) and record.name.startswith(_LOGGERS) and _is_the_clients(error):
            said = cut(" ".join(record.getMessage().split()), _MAX_CHARS)
            record.msg, record.args = "%s (%s)", (said, type(error).__name__)
            record.exc_info = record.exc_text = None
        return True


def log_refusals_in_a_line(state: Any) -> None:
    """Log no traceback for a request that is refused, unless the operator asks for them.

    ``state``: that of vLLM's app.

    Patch: the handlers of vLLM's logger.
    Symptom without it: /v1/messages logs a traceback for each body that it refuses, at a client's will; for a
    stream that is refused on its way to the engine, for want of room say, there are two.
    Upstream: so in stock ``vllm serve``, too. Remove when its routes log client errors without a traceback.
    """
    if getattr(getattr(state, "args", None), "log_error_stack", False):
        return
    for handler in logging.getLogger("vllm").handlers:
        if not any(isinstance(other, OneLine) for other in handler.filters):
            handler.addFilter(OneLine())


def _behind(error: BaseException | None) -> BaseException | None:
    """What vLLM's engine client raised ``error`` of, or itself."""
    from vllm.v1.engine.exceptions import EngineGenerateError

    return error.__cause__ if isinstance(error, EngineGenerateError) else error


def _is_the_clients(error: Exception) -> bool:
    """Whether ``error`` is answered with a 4xx, or with a 503 for want of room."""
    if isinstance(error, Overloaded):
        return True
    from vllm.entrypoints.serve.exception_handling.error_response import create_error_response

    return bool(create_error_response(error).error.code < 500)
