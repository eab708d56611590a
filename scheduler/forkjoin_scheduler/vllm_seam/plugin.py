"""vLLM's plugin entry point: loaded in every process that vLLM starts.

Patch: ``vllm.v1.engine.async_llm.OutputProcessor`` -> ForkJoinOutputProcessor.
Symptom without it: thread events, which vLLM drops as outputs of an unknown request, are lost.
Upstream: there is no option for the class. Remove when AsyncLLM takes one.

Patch: ``vllm.v1.engine.async_llm.RequestOutputCollector`` -> PieceCollector.
Symptom without it: thousands of tokens with logprobs become one event, which takes seconds to write.
Upstream: so in stock ``vllm serve``, too, where a client reads slowly. Remove when it bounds an event.
"""

from __future__ import annotations

import torch


def register() -> None:
    """Put our classes in the place of vLLM's, keep secrets and noise out of its logs, and ask for AMX.

    A process of the engine ends with the threads that it can't do without.
    """
    import vllm.v1.engine.async_llm as async_llm

    from forkjoin_scheduler.redact import hide_in_logs
    from forkjoin_scheduler.vllm_seam.front_end.collector import PieceCollector
    from forkjoin_scheduler.vllm_seam.front_end.engine_calls import answer_front_ends
    from forkjoin_scheduler.vllm_seam.front_end.output import ForkJoinOutputProcessor
    from forkjoin_scheduler.vllm_seam.front_end.shutdown_lines import leave_out_shutdown_steps
    from forkjoin_scheduler.vllm_seam.front_end.token_texts import decode_alternatives_once
    from forkjoin_scheduler.vllm_seam.mends.adapters_on_cpu import add_nothing_without_an_adapter
    from forkjoin_scheduler.vllm_seam.mends.drafted_temperatures import spread_temperatures_over_drafts
    from forkjoin_scheduler.vllm_seam.mends.seeded import (
        keep_seeds_of_partial_prompts,
        seed_again_what_goes_on,
    )
    from forkjoin_scheduler.vllm_seam.mends.states_on_cpu import end_steps_where_states_are_cached
    from forkjoin_scheduler.vllm_seam.models.registering import register_parathinker
    from forkjoin_scheduler.vllm_seam.repetition import leave_prompts_out_of_repetition
    from forkjoin_scheduler.vllm_seam.vital import end_with_vital_threads

    setattr(async_llm, "OutputProcessor", ForkJoinOutputProcessor)  # noqa: B010
    setattr(async_llm, "RequestOutputCollector", PieceCollector)  # noqa: B010
    hide_in_logs()
    leave_out_shutdown_steps()
    end_with_vital_threads()
    keep_seeds_of_partial_prompts()
    seed_again_what_goes_on()
    end_steps_where_states_are_cached()
    spread_temperatures_over_drafts()
    add_nothing_without_an_adapter()
    leave_prompts_out_of_repetition()
    decode_alternatives_once()
    answer_front_ends()
    register_parathinker()
    _allow_amx()


def _allow_amx() -> None:
    """Ask Linux for leave to use AMX, which each process has to; where there is none, nothing happens.

    Symptom without it: a worker on a CPU with AMX dies of SIGILL, and the server with it, if the first
    prompt since its start is one token. vLLM's attention uses AMX and never asks; oneDNN asks, but only
    when it multiplies something larger.
    Upstream: so in stock ``vllm serve``, too. Remove when its CPU attention asks.
    """
    torch.cpu._init_amx()
