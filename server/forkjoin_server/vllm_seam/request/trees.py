"""What of vLLM's engine a tree is compared by that a request goes on from."""

from __future__ import annotations

from typing import Any

from forkjoin_scheduler.dialects.bound import BoundDialect
from forkjoin_scheduler.dialects.dialect import Dialect
from forkjoin_scheduler.replay.given import Engine
from forkjoin_scheduler.vllm_seam.tokenizer import EngineTokenizer, end_of_sequence_ids

#: The last one, and the dialect and vLLM's configuration that it is of: a vocabulary is read once.
_LAST: list[tuple[Any, Dialect, Engine]] = []


def engine_of(model_config: Any, tokenizer: Any, dialect: Dialect) -> Engine:
    """The engine that serves ``model_config``, of vLLM, with this ``tokenizer``, of transformers."""
    for known_config, known_dialect, engine in _LAST:
        if known_config is model_config and known_dialect is dialect:
            return engine
    bound_dialect = BoundDialect.bind(dialect, EngineTokenizer(tokenizer))
    eos_ids = frozenset(end_of_sequence_ids(model_config))
    engine = Engine(bound_dialect, model_config.max_model_len, eos_ids, model_config.max_logprobs)
    _LAST[:] = [(model_config, dialect, engine)]
    return engine
