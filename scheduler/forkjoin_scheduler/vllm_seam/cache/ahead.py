"""The progressive join (``machine/ahead.py``) on KV blocks: a job of slices, as large as steps allow."""

from __future__ import annotations

from functools import partial

from forkjoin_scheduler.families.family import Branch
from forkjoin_scheduler.joins.joined import joined_ids
from forkjoin_scheduler.machine import ahead
from forkjoin_scheduler.publish.events import JoinedAhead
from forkjoin_scheduler.vllm_seam.cache import kv
from forkjoin_scheduler.vllm_seam.cache.kv_job import KVJob, PrefillRequest, Work
from forkjoin_scheduler.vllm_seam.cache.kv_jobs import KVJobs
from forkjoin_scheduler.vllm_seam.cache.stitching import Part
from forkjoin_scheduler.vllm_seam.core import Core
from forkjoin_scheduler.vllm_seam.live import LiveFamily


class EagerJoinPrefill:
    """Prefills for joins to come, within ``Settings.join_ahead_tokens`` a step."""

    def __init__(self, core: Core, jobs: KVJobs) -> None:
        self._core = core
        self._jobs = jobs
        #: Tokens that are being prefilled ahead, and the branches that wait to have some.
        self.num_tokens = 0
        self.waiting: list[tuple[LiveFamily, Branch]] = []

    def prefill(self, live: LiveFamily, branch: Branch) -> None:
        """Prefill threads that have ended, in order, after the first while slower ones decode.

        Riding in their steps it costs little, and leaves little to do when the last one ends.
        """
        if not self._core.settings.join_ahead_tokens or branch in live.ahead:
            return
        if branch.waits_for and branch.waits_for[0] in live.held and ahead.may_prefill(live, branch):
            job = self._jobs.start(live, partial(self._prefill_ended, live, branch))
            if job in live.jobs:
                live.ahead[branch] = job

    def _prefill_ended(self, live: LiveFamily, branch: Branch, job: KVJob) -> Work:
        """Go on as long as the next thread has ended and the step has tokens left, slice by slice."""
        first, most = branch.waits_for[0], self._core.max_model_len
        held = live.held.pop(first)
        parent = self._core.request_of(branch)
        job.last_hashes = parent.block_hashes  # it begins as its parent's
        tokenizer = self._core.tokenizer
        context = [*parent._all_token_ids, *joined_ids(live.dialect, first, tokenizer)]
        ends: list[int] = []
        while True:
            while len(context) < most and ahead.num_ended(live, branch) > len(ends) + 1:
                context += joined_ids(live.dialect, branch.waits_for[len(ends) + 1], tokenizer)
                ends += [len(context)] if len(context) < most else []
            end = ahead.next_end(
                held.num_tokens, ends, self._core.settings.join_ahead_tokens - self.num_tokens
            )
            if end == held.num_tokens:
                break
            held = yield from self._prefill_slice(live, job, context[:end], held)
        if ends and held.num_tokens < ends[-1]:
            self.waiting.append((live, branch))
        live.held[first] = held
        live.ahead.pop(branch, None)

    def _prefill_slice(self, live: LiveFamily, job: KVJob, token_ids: list[int], held: kv.HeldBlocks) -> Part:
        num_tokens = len(token_ids) - held.num_tokens
        self.num_tokens += num_tokens
        try:
            held = job.take((yield PrefillRequest(token_ids, held, known_hashes=job.last_hashes)))
        finally:
            self.num_tokens -= num_tokens
        live.emit(JoinedAhead(prefilled_tokens=num_tokens))
        return held

    def go_on(self, live: LiveFamily, branch: Branch) -> None:
        """Prefill ahead for a branch for which the last step had no tokens left."""
        if live.family.request_id in self._core.live:
            self.prefill(live, branch)

    def prefilled(self, live: LiveFamily, branch: Branch) -> kv.HeldBlocks | None:
        """The blocks that hold the beginning of the joined context, taken from whatever holds them."""
        if job := live.ahead.pop(branch, None):
            held = self._take_over(job)
            if held is not None:
                num_tokens = max(held.num_tokens - self._start_of(job), 0)
                live.emit(JoinedAhead(prefilled_tokens=num_tokens))
            self._jobs.clear(job)
            live.jobs.remove(job)
            return held
        return live.held.pop(branch.waits_for[0], None)

    def _take_over(self, job: KVJob) -> kv.HeldBlocks | None:
        """What the fill of ``job`` has computed so far; None if vLLM has preempted it."""
        request, fill = job.request, job.fill
        if request is None or fill is None or not request.num_computed_tokens:
            return None
        return kv.hold(self._core.kv_cache_manager, request, len(fill.token_ids))

    @staticmethod
    def _start_of(job: KVJob) -> int:
        return job.fill.start.num_tokens if job.fill is not None and job.fill.start is not None else 0
