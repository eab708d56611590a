"""The tokenizers of models."""

from __future__ import annotations

from typing import Any

from forkjoin_scheduler.dialects.bound import BoundDialect
from forkjoin_scheduler.dialects.dialect import Dialect
from forkjoin_scheduler.dialects.tokenizer import Tokenizer
from forkjoin_scheduler.errors import UsageError


def tokenizer_of(model: str) -> Tokenizer:
    """The tokenizer of ``model``, a folder or a name on the hub. Raises UsageError if it can't be had."""
    from vllm.tokenizers.registry import get_tokenizer

    from forkjoin_scheduler.vllm_seam.tokenizer import EngineTokenizer

    try:
        return EngineTokenizer(get_tokenizer(model))
    except Exception as error:  # of whatever kind the hub and the tokenizers raise
        first_line = str(error).partition("\n")[0]
        raise UsageError(f"expected a model with a tokenizer, got {model!r}: {first_line}") from error


def bind_to_model(dialect: Dialect, vllm_config: Any) -> BoundDialect:
    """``dialect`` as the served model's tokenizer writes it. Raises DialectError if that can't."""
    from forkjoin_scheduler.vllm_seam.tokenizer import EngineTokenizer

    return BoundDialect.bind(dialect, EngineTokenizer.from_model_config(vllm_config.model_config))
