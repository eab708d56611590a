"""Sampling parameters inside threads and after a join."""

from __future__ import annotations

import hashlib

from vllm.sampling_params import SamplingParams


def thread_params(
    parent: SamplingParams, *, end_id: int, max_tokens: int, generated: int, salt: str
) -> SamplingParams:
    """The parent's parameters for a thread.

    The thread also stops at ``end_id`` (which min_tokens does not forbid), its seed is derived
    from the parent's, if that has one, and ``salt``, and what is left of min_tokens counts on.
    """
    params = parent.clone()
    params.stop_token_ids = [*(parent.stop_token_ids or ()), end_id]
    params.max_tokens = max_tokens
    params.min_tokens = remaining_min_tokens(parent, generated, max_tokens)
    params.prompt_logprobs = None
    if parent.seed is not None:
        params.seed = derived_seed(parent.seed, salt)
    return params


def resumed_params(original: SamplingParams, *, max_tokens: int, generated: int) -> SamplingParams:
    """The request's own parameters for going on behind a join, ``generated`` tokens in."""
    params = original.clone()
    params.max_tokens = max_tokens
    params.min_tokens = remaining_min_tokens(original, generated, max_tokens)
    params.prompt_logprobs = None
    return params


def remaining_min_tokens(params: SamplingParams, generated: int, max_tokens: int) -> int:
    """How many of ``min_tokens`` are still owed."""
    return min(max(params.min_tokens - generated, 0), max_tokens)


def derived_seed(seed: int, salt: str) -> int:
    """A seed of 63 bits, distinct for each ``salt``."""
    digest = hashlib.blake2b(f"{seed}/{salt}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
