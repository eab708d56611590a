"""The dialect: whether the model's tokenizer and class have what it needs."""

from __future__ import annotations

from typing import Any

from forkjoin_scheduler.dialects.dialect import Dialect
from forkjoin_scheduler.errors import DialectError, UsageError
from forkjoin_scheduler.settings import KEY, Settings
from forkjoin_server.doctor.check import Check, fail, ok
from forkjoin_server.start.dialect_choice import Choice
from forkjoin_server.start.fit import found
from forkjoin_server.vllm_seam.request.control_tokens import check_renderer
from forkjoin_server.vllm_seam.tokenizers import bind_to_model


def dialect(vllm_config: Any, wanted: Dialect | None, choice: Choice | None = None) -> Check:
    """Whether the model speaks the dialect ``wanted``; None: fork/join is off.

    ``choice``: how it came to it, where nobody named it.
    """
    if wanted is None:
        return ok("dialect", "none: fork/join is off")
    from forkjoin_scheduler.vllm_seam.compat import check_model

    reason = f"{choice.name}, {choice.reason}: " if choice is not None else ""
    try:
        bound = bind_to_model(wanted, vllm_config)
        check_model(wanted, vllm_config.model_config)
        check_renderer(
            vllm_config.model_config, Settings.model_validate(vllm_config.additional_config.get(KEY, {}))
        )
    except (DialectError, UsageError) as error:
        return fail("dialect", f"{reason}{error}")
    except Exception as error:  # of whatever kind the tokenizer's files raise
        first_line = str(error).partition("\n")[0]
        return fail("dialect", f"the model has no tokenizer to read {wanted.name} by: {first_line}")
    return ok("dialect", f"{reason or f'{wanted.name}: '}{'; '.join(found(wanted, bound.dialect))}")
