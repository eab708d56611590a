"""Where vLLM keeps the responses that it stores."""

from __future__ import annotations


def stores_responses() -> bool:
    """Whether vLLM stores the responses that ask for it, to be fetched by their ids."""
    from vllm import envs

    return bool(envs.VLLM_ENABLE_RESPONSES_API_STORE)
