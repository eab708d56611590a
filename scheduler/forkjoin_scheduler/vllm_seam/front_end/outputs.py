"""Pieces of the transcript as outputs of the parent request."""

from __future__ import annotations

import numpy as np
from vllm.v1.engine import EngineCoreOutput, FinishReason
from vllm.v1.outputs import LogprobsLists
from vllm.v1.request import Request

from forkjoin_scheduler.machine.output_token import OutputToken
from forkjoin_scheduler.publish.injected import INJECTED_LOGPROB


def to_outputs(
    parent: Request,
    pieces: list[OutputToken],
    finish_reason: FinishReason | None,
    stop_reason: int | str | None,
    *,
    begins: bool = False,
) -> list[EngineCoreOutput]:
    """``pieces`` as outputs of ``parent``: one, or one a token where logprobs are wanted.

    ``begins``: the answer begins, even without a token: a stream can't show threads before it has.
    """
    params = parent.sampling_params
    wants_logprobs = params is not None and params.num_logprobs is not None
    if not (pieces or finish_reason is not None or begins):
        return []
    groups = [[p] for p in pieces] if wants_logprobs and pieces else [pieces]
    outputs = [
        EngineCoreOutput(
            request_id=parent.request_id,
            new_token_ids=[p.token_id for p in group],
            new_logprobs=(group[0].logprobs or certain(group[0].token_id))
            if wants_logprobs and group
            else None,
            trace_headers=parent.trace_headers,
        )
        for group in groups
    ]
    # What vLLM has noted of the request and, as it has let out nothing itself, not sent yet.
    outputs[0].prefill_stats = parent.take_prefill_stats()
    outputs[0].events = parent.take_events()
    outputs[-1].finish_reason = finish_reason
    outputs[-1].stop_reason = stop_reason
    return outputs


def certain(token_id: int) -> LogprobsLists:
    """An injected token was not sampled: its probability is 1 (marked), and it has no alternatives."""
    return LogprobsLists(
        np.array([[token_id]], dtype=np.int32),
        np.array([[INJECTED_LOGPROB]], dtype=np.float32),
        np.array([1], dtype=np.int32),
    )
