"""Sampling parameters inside threads and after a join."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from copy import copy

from vllm import envs
from vllm.sampling_params import SamplingParams, StructuredOutputsParams

from forkjoin_scheduler.dialects.dialect import SamplingOverrides
from forkjoin_scheduler.vllm_seam.repetition import counting_output

_DEFAULTS = SamplingParams()
#: Fields of overrides that are vLLM's, too.
_OVERRIDDEN = SamplingOverrides.model_fields.keys() - {"always", "repetition_counts"}


def without_banned(params: SamplingParams, banned: list[list[int]]) -> SamplingParams:
    """``params`` under which the last token of each row in ``banned`` is never sampled after the others.

    vLLM has so many places for a request's bad words, and ends where there are more: the request's
    own come first.
    """
    if not banned or not can_ban(params, banned):
        return params
    own = params.bad_words_token_ids or []
    params = copy(params)
    params._bad_words_token_ids = [*own, *banned]
    return params


def can_ban(params: SamplingParams, banned: list[list[int]]) -> bool:
    """Whether vLLM has places for these rows beside a request's own bad words."""
    rows = [*(params.bad_words_token_ids or []), *banned]
    num_tokens = sum(map(len, rows))
    return len(rows) <= envs.VLLM_MAX_NUM_BAD_WORDS and num_tokens <= envs.VLLM_MAX_BAD_WORDS_TOTAL_TOKENS


def thread_params(
    original: SamplingParams,
    overrides: SamplingOverrides,
    *,
    end_ids: Sequence[int],
    max_tokens: int,
    generated: int,
    salt: str,
    structured: StructuredOutputsParams | None = None,
    not_written: list[list[int]] | None = None,
) -> SamplingParams:
    """The request's ``original`` parameters for a thread; ``generated`` tokens count towards min_tokens.

    ``structured``: what its own text is to obey. ``not_written``: rows of tokens that it never completes.

    The thread also stops at ``end_ids``, if any, which min_tokens does not forbid: a thread with an
    end tag may be as short as it likes.
    """
    params = resumed_params(original, overrides, max_tokens=max_tokens, generated=generated, salt=salt)
    params = without_banned(params, not_written or [])
    params.structured_outputs = structured
    if end_ids:
        params.stop_token_ids = [*(original.stop_token_ids or ()), *end_ids]
        # min_tokens would forbid the end tag: on its way to the workers vLLM counts it among the stop
        # tokens. What the request owes is owed after the join.
        params.min_tokens = 0
    return params


def resumed_params(
    original: SamplingParams,
    overrides: SamplingOverrides,
    *,
    max_tokens: int,
    generated: int,
    salt: str,
) -> SamplingParams:
    """The request's ``original`` parameters for going on after a join.

    What is left of min_tokens counts on; a seed is derived from the request's, if that has one,
    and ``salt``, so that no two branches draw the same numbers. ``overrides`` take the place of
    vLLM's defaults, and of what the request asked for only if they say so.
    """
    params = copy(original)
    # Of what it holds this alone is changed in place: in each process that it reaches.
    params._all_stop_token_ids = set(original._all_stop_token_ids)
    params.max_tokens = max_tokens
    params.min_tokens = min(max(original.min_tokens - generated, 0), max_tokens)
    params.prompt_logprobs = params.prompt_logprob_token_ids = params.prompt_logprob_start = None
    if original.seed is not None:
        params.seed = derived_seed(original.seed, salt)
    if overrides.repetition_counts == "output":
        params = counting_output(params)
    for name, value in overrides.model_dump(include=set(_OVERRIDDEN), exclude_none=True).items():
        if overrides.always or getattr(original, name) == getattr(_DEFAULTS, name):
            setattr(params, name, value)
    return params


def asks_for_prompt(params: SamplingParams) -> bool:
    """Whether ``params`` ask for log-probabilities of the prompt: vLLM gives them with a token only."""
    return params.prompt_logprobs is not None or params.prompt_logprob_token_ids is not None


def with_stops(params: SamplingParams, stop_ids: Sequence[int]) -> SamplingParams:
    """``params`` under which the request ends at ``stop_ids``, too."""
    if not stop_ids:
        return params
    params = copy(params)
    params.stop_token_ids = [*(params.stop_token_ids or ()), *stop_ids]
    return params


def with_logprobs(params: SamplingParams, num: int, most: int) -> None:
    """Let the sampler return the logprobs of ``num`` alternatives at least, or of the ``most`` that it may.

    Of requests that name the tokens whose logprobs they want, it returns those alone. -1: of all tokens.
    """
    num = num if most == -1 else min(num, most)
    if num and not params.logprob_token_ids and params.logprobs != -1:
        params.logprobs = max(params.logprobs or 0, num)


def derived_seed(seed: int, salt: str) -> int:
    """A seed of 63 bits, distinct for each ``salt``."""
    digest = hashlib.blake2b(f"{seed}/{salt}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
