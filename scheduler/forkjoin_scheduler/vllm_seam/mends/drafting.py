"""Which of vLLM's drafters run beside forks.

A drafter guesses tokens, and the model says which of them are right; so a drafter that forks confuse costs
speed and no exactness. But how tokens come, how many, and whose KV they need is the method's own affair, so
those are taken that have been tested with forks.
"""

from __future__ import annotations

from typing import get_args

from vllm.config import VllmConfig
from vllm.config.speculative import MTPModelTypes

from forkjoin_scheduler.errors import UnsupportedEngine

#: They look drafts up in what was written, and keep no KV.
WITHOUT_KV = ("ngram", "suffix")
#: The methods of rejection that keep what the model writes, in distribution.
LOSSLESS = ("standard", "block")
TESTED = (*WITHOUT_KV, "draft_model", "eagle", "eagle3", *get_args(MTPModelTypes))


def drafts_as_tested(vllm_config: VllmConfig) -> bool:
    """Whether nothing is drafted, or by a method that is tested with forks."""
    speculative = vllm_config.speculative_config
    if speculative is None:
        return True
    # Several modules of MTP in a row read prompts ahead of the model, which joins do not let them.
    is_ahead = vllm_config.num_prefill_lookahead_tokens > 1
    return speculative.method in TESTED and not speculative.parallel_drafting and not is_ahead


def drafts_are_judged(vllm_config: VllmConfig) -> bool:
    """Whether a draft is kept only where the model would have written it, as likely as it would.

    Other methods of vLLM's keep what is close enough (``fly``), or what chance picks (``synthetic``): also a
    tag that the model does not write, which forks or ends a thread.
    """
    speculative = vllm_config.speculative_config
    return speculative is None or speculative.rejection_sample_method in LOSSLESS


def drafts_with_kv(vllm_config: VllmConfig) -> str | None:
    """The method by which is drafted, if that needs KV of its own; else None."""
    speculative = vllm_config.speculative_config
    return None if speculative is None or speculative.method in WITHOUT_KV else str(speculative.method)


def check_fills_in(vllm_config: VllmConfig) -> None:
    """Raise UnsupportedEngine unless the drafter leaves drafts to be filled in on their way."""
    speculative = vllm_config.speculative_config
    if speculative is None or speculative.method not in WITHOUT_KV:
        found = "no speculative decoding" if speculative is None else speculative.method
        raise UnsupportedEngine(
            f"--draft-from family expects a drafter that may find nothing ({', '.join(WITHOUT_KV)}), found "
            f"{found}: name one of them in --speculative-config, or drop --draft-from"
        )
