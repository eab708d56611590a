"""How a branch goes on when its threads have ended, or ends with them."""

from __future__ import annotations

from vllm.v1.request import Request

from forkjoin_scheduler.joins.joined import JoinPlan, written
from forkjoin_scheduler.machine.family import Branch
from forkjoin_scheduler.machine.thread_end import ThreadEnd
from forkjoin_scheduler.machine.vote import Vote
from forkjoin_scheduler.publish.events import Joined, Voted
from forkjoin_scheduler.vllm_seam.cache import kv
from forkjoin_scheduler.vllm_seam.cache.ahead import JoinAhead
from forkjoin_scheduler.vllm_seam.cache.placing import Placing
from forkjoin_scheduler.vllm_seam.cache.stitching import Stitching
from forkjoin_scheduler.vllm_seam.core import CAPPED, STOPPED, Core
from forkjoin_scheduler.vllm_seam.front_end.outputs import Piece, injected
from forkjoin_scheduler.vllm_seam.live import LiveFamily
from forkjoin_scheduler.vllm_seam.starts import queues
from forkjoin_scheduler.vllm_seam.starts.answers import Answers
from forkjoin_scheduler.vllm_seam.starts.requests import fold, truncate
from forkjoin_scheduler.vllm_seam.threads.cutting import Cutting
from forkjoin_scheduler.vllm_seam.threads.ending import Ends
from forkjoin_scheduler.vllm_seam.threads.params import Params


class Joins:
    """Lets branches go on behind their threads. Keeps nothing."""

    def __init__(
        self,
        core: Core,
        answers: Answers,
        placing: Placing,
        stitching: Stitching,
        ahead: JoinAhead,
        ends: Ends,
        cutting: Cutting,
        params: Params,
    ) -> None:
        self._core = core
        self._answers = answers
        self._placing = placing
        self._stitching = stitching
        self._ahead = ahead
        self._ends = ends
        self._cutting = cutting
        self._params = params

    def join(self, live: LiveFamily, branch: Branch) -> None:
        threads = branch.waits_for
        if live.stop_reason is not None and any(t.end is ThreadEnd.REQUEST_STOP for t in threads):
            self._end_branch(live, branch, ThreadEnd.REQUEST_STOP)
            return
        request = self._core.request_of(branch)
        if live.vote is not None:
            self._end_branch(live, branch, self._show_winner(live, branch, live.vote))
            return
        plan = self._plan_join(live, branch, request)
        join, transcript = live.dialect.join, live.transcripts[branch]
        num_tokens = (request.num_tokens if plan.keep is None else plan.keep) + len(plan.token_ids)
        is_too_long = join.goes_on and self._room_behind_join(live, branch, num_tokens) <= 0
        is_spent = join.goes_on and plan.end is None and not live.family.remaining
        if not join.shows_threads:
            transcript.push(injected(plan.token_ids))
        elif not (is_too_long or is_spent):
            transcript.push(injected(plan.closing_ids))
        if is_too_long:
            self._cutting.end_at_limit(live, "joined_too_long", live.dialect.policies.joined_too_long)
        elif is_spent:
            self._cutting.end_at_budget(live)
        elif plan.end is not None or not join.goes_on:
            end = plan.end or self._end_of_all(branch)
            if end is not ThreadEnd.LENGTH and branch is live.family.root:
                # vLLM keeps the last token of a stopped request out of its text.
                transcript.push([Piece(self._eos_of(branch))])
            branch.token_ids += plan.token_ids
            self._end_branch(live, branch, end)
        else:
            self.resume(live, branch, request, plan)

    def _plan_join(self, live: LiveFamily, branch: Branch, request: Request) -> JoinPlan:
        dialect, context = live.dialect, request._all_token_ids
        return dialect.join.plan(
            dialect, branch.waits_for, context, self._core.tokenizer, live.wish.options.closing
        )

    def outgrows(self, live: LiveFamily, branch: Branch) -> bool:
        """Whether the threads of a parked ``branch`` hold more already than its joined context may."""
        own = sum(len(t.token_ids) for t in branch.waits_for)
        return branch.waits_for[0].fork_len + own >= self._core.max_model_len

    def _room_behind_join(self, live: LiveFamily, branch: Branch, num_tokens: int) -> int:
        offset = self._stitching.offset_behind(live, branch.waits_for) if live.dialect.join.moves_kv else 0
        return self._params.room(live, branch, num_tokens, offset)

    @staticmethod
    def _end_of_all(branch: Branch) -> ThreadEnd:
        """How a branch ends that ends with its threads."""
        ends = [t.end for t in branch.waits_for]
        return ThreadEnd.STOP if ThreadEnd.STOP in ends else ThreadEnd.LENGTH

    @staticmethod
    def _show_winner(live: LiveFamily, branch: Branch, vote: Vote) -> ThreadEnd:
        """Let the thread with the most votes out as the answer; returns how that ends."""
        winner, result = vote.winner(branch.waits_for)
        for thread in branch.waits_for:
            transcript = live.transcripts.pop(thread)
            if thread is winner:
                live.transcripts[branch].push(transcript.release())
        live.tell(Voted(index=winner.index, result=result))
        if winner.end is not ThreadEnd.STOP:
            return ThreadEnd.LENGTH
        # vLLM keeps the last token of a stopped request out of its text.
        live.transcripts[branch].push([Piece(winner.token_ids[-1])])
        return ThreadEnd.STOP

    def resume(self, live: LiveFamily, branch: Branch, request: Request, plan: JoinPlan) -> None:
        """Let ``branch`` go on behind its threads: on KV that is there, the rest prefilled."""
        family, threads = live.family, list(branch.waits_for)
        wish = self._core.wishes[request.request_id]
        if plan.keep is not None:
            self.rewind(branch, request, plan.keep)
        num_tokens = request.num_tokens + len(plan.token_ids)
        family.join(branch, list(plan.token_ids))
        params = self._params.behind_join(live, branch, self._room_behind_join(live, branch, num_tokens))
        num_computed_tokens = request.num_computed_tokens
        if live.dialect.join.moves_kv:
            stitched = self._stitching.stitched(live, {t: live.held.pop(t) for t in threads})
            branch.offset = self._stitching.offset_behind(live, threads)
            branch.stitched_len = num_computed_tokens = stitched.num_tokens
            self._placing.start_stitched(request, stitched, ((0, branch.offset),))
        fold(request, plan.token_ids, params)
        if branch is family.root:
            shown = live.dialect.join.shows_threads
            self._answers.joined(request, plan.closing_ids if shown else plan.token_ids)
        if held := self._ahead.prefilled(live, branch):
            kv.adopt(self._core.kv_cache_manager, request, held)
            num_computed_tokens = held.num_tokens
        wish.since = request.num_tokens
        if not live.dialect.join.moves_kv:  # the last token is computed once more, where nothing follows it
            num_computed_tokens = min(num_computed_tokens, request.num_tokens - 1)
        queues.resume(self._core.scheduler, request, num_computed_tokens)
        num_prefilled = num_tokens - num_computed_tokens
        live.tell(Joined(parent_index=branch.index, prefilled_tokens=num_prefilled))

    def rewind(self, branch: Branch, request: Request, num_tokens: int) -> None:
        """Let a parked ``request`` be as it was behind ``num_tokens`` tokens, to go on otherwise.

        Its blocks go back: they may be hashed by the tokens that are cut off.
        """
        branch.cut_context(num_tokens)
        truncate(request, num_tokens)
        request.num_computed_tokens = kv.keep(self._core.kv_cache_manager, request, 0)

    def _eos_of(self, branch: Branch) -> int:
        """The end-of-sequence token that the first thread to write one wrote."""
        wrote = (t.token_ids[-1] for t in branch.waits_for if not t.forks and written(t) != t.token_ids)
        return next(wrote, min(self._core.eos_ids, default=0))

    def _end_branch(self, live: LiveFamily, branch: Branch, end: ThreadEnd) -> None:
        """A parked ``branch`` ends with its threads: the request, or a thread that had forked."""
        status = CAPPED if end is ThreadEnd.LENGTH else STOPPED
        if branch is live.family.root:
            self._ends.end_family(live, status)
            return
        if held := self._ahead.prefilled(live, branch):
            kv.release(self._core.kv_cache_manager, held)
        kv.release(self._core.kv_cache_manager, *live.take_held(branch.waits_for))
        self._core.scheduler.end_requests([branch.request_id], status)
        self._ends.end_thread(live, branch, end)
