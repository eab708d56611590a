"""A family in the engine: its machine, and what vLLM and the KV cache have of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine import EngineCoreOutput, FinishReason
from vllm.v1.request import Request

from forkjoin_scheduler.families.family import Branch
from forkjoin_scheduler.lookup import Lookup
from forkjoin_scheduler.machine.machine import Machine, Terms
from forkjoin_scheduler.publish.events import Drafted, FamilyEnded, Progress
from forkjoin_scheduler.vllm_seam.cache import kv
from forkjoin_scheduler.vllm_seam.front_end import wire
from forkjoin_scheduler.vllm_seam.front_end.outputs import to_outputs
from forkjoin_scheduler.vllm_seam.starts.forkjoin_params import ForkJoinParams

if TYPE_CHECKING:
    from forkjoin_scheduler.vllm_seam.cache.kv_job import KVJob

#: vLLM's ends, by what clients see of them.
_REASONS = {str(reason): reason for reason in FinishReason}


def max_tokens_of(fj_params: ForkJoinParams) -> int:
    """The budget of a family: of the request and all its threads."""
    # Each thread of a vote is an answer with as many tokens as one.
    wanted = fj_params.max_tokens * fj_params.bound_dialect.dialect.num_answers(fj_params.limits)
    cap = fj_params.limits.max_total_tokens
    return wanted if cap is None else min(wanted, cap)


def terms_of(request: Request, fj_params: ForkJoinParams) -> Terms:
    """What the machine of ``request`` decides by."""
    return Terms(
        fj_params.options,
        fj_params.bound_dialect,
        fj_params.max_tokens,
        wants_logprobs=fj_params.sampling_params.num_logprobs is not None,
        is_streamed=fj_params.sampling_params.output_kind != RequestOutputKind.FINAL_ONLY,
        prompt_len=request.num_prompt_tokens,
    )


@dataclass(eq=False, kw_only=True)
class LiveFamily(Machine):
    """``request`` is the root's, ``fj_params`` what the client asked for with it."""

    request: Request
    fj_params: ForkJoinParams
    #: Blocks of threads that have ended, until their join.
    held: dict[Branch, kv.HeldBlocks] = field(default_factory=dict)
    #: KV that is computed beside the decoding.
    jobs: list[KVJob] = field(default_factory=list)
    #: Those of them that prefill ended threads one after another, by the branch that waits for these.
    ahead: dict[Branch, KVJob] = field(default_factory=dict)
    #: Threads that have ended and whose last tokens a job gives their KV.
    closing: set[Branch] = field(default_factory=set)
    #: What its branches have written, to draft from (``family_drafts.py``).
    lookup: Lookup | None = None
    #: Tokens that were drafted for it, and those of them that were right, by whose drafts they were.
    drafted: Counter[str] = field(default_factory=Counter)
    accepted: Counter[str] = field(default_factory=Counter)
    #: Whether its answer begins in this step, with or without a token: it has forked after its prompt.
    begins: bool = False
    #: Tokens of the root's output of this step that leave as any request's: the family was not yet.
    num_led: int = 0

    def take_held(self, threads: Iterable[Branch]) -> list[kv.HeldBlocks]:
        """Hand on the blocks that are held of ``threads``: the caller owns them then."""
        return [self.held.pop(thread) for thread in list(threads) if thread in self.held]

    def leaving(self, engine: int) -> tuple[list[EngineCoreOutput], list[EngineCoreOutput]]:
        """What the family sends from ``engine`` to the front end in this step: its events, and its tokens.

        The events are still noted then, for their sender to forget.
        """
        family, pieces = self.family, self.release()
        for source in () if family.is_live else sorted(self.drafted):
            self.emit(Drafted(source=source, num=self.drafted[source], num_right=self.accepted[source]))
        if self.recording is not None:
            self.events += self.recording.take()
        # A stop string ends the request in the front end, which needs the counts of that very step.
        if self.events or self.fj_params.sampling_params.stop or not family.is_live:
            self.emit(self.counts(Progress) if family.is_live else self.counts(FamilyEnded))
        told = [wire.pack(family.request_id, self.events, engine)] if self.events else []
        finish_reason = None if self.finish is None else _REASONS[self.finish]
        # A limit may have ended the answer before what has stopped was its turn.
        stop_reason = self.stop_reason if finish_reason is FinishReason.STOP else None
        begins, self.begins = self.begins, False
        return told, to_outputs(self.request, pieces, finish_reason, stop_reason, begins=begins)
