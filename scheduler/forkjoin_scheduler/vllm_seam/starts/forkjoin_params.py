"""What one request asks of fork/join, read once when it arrives."""

from __future__ import annotations

from dataclasses import dataclass, field

from vllm.sampling_params import SamplingParams

from forkjoin_scheduler.dialects.bound import BoundDialect
from forkjoin_scheduler.dialects.limits import Limits
from forkjoin_scheduler.publish.recording import Recording
from forkjoin_scheduler.request.given import Stretch
from forkjoin_scheduler.request.options import CompiledOptions


@dataclass
class ForkJoinParams:
    """``sampling_params`` are as the client gave them. ``max_tokens``: of the answer, its threads included.

    ``since``: tokens of the context that were there before the request wrote, or when it forked
    last, or was refused to. ``at_prompt``: whether it is still to fork behind its prompt. ``not_in_threads``:
    rows of tokens that no thread writes, as vLLM has bad words. ``recording``: of its tree, if it wants that.
    ``given``: what an earlier answer had written at the end of its context, whose KV is being computed.
    """

    options: CompiledOptions
    limits: Limits
    bound_dialect: BoundDialect
    sampling_params: SamplingParams
    max_tokens: int
    since: int
    at_prompt: bool
    not_in_threads: list[list[int]] = field(default_factory=list)
    recording: Recording | None = None
    given: Stretch | None = None
