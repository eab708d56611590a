"""Whether the served model's KV can be kept for requests that go on from an answer."""

from __future__ import annotations

from typing import Any

from forkjoin_scheduler.errors import BadRequestOptions
from forkjoin_scheduler.request.options import RequestOptions


def check_keeps(options: RequestOptions, vllm_config: Any) -> None:
    """Raise BadRequestOptions if nothing could be found again of an answer that is to be kept.

    ``vllm_config``: vLLM's; None where there is no engine.
    """
    if options.keep is None or vllm_config is None:
        return
    if not vllm_config.cache_config.enable_prefix_caching:
        raise BadRequestOptions(
            "forkjoin.keep: expected a server with a prefix cache, but it runs with "
            "--no-enable-prefix-caching: leave it out"
        )
    model_config = vllm_config.model_config
    if model_config.is_hybrid or model_config.is_attention_free:
        raise BadRequestOptions(
            "forkjoin.keep: expected a model whose layers all keep KV, but some of this one keep one state "
            "of the whole sequence, which no other request can share: leave it out"
        )
