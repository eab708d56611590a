"""How a branch goes on when its threads have ended, or ends with them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from vllm.sampling_params import StructuredOutputsParams
from vllm.v1.request import Request

from forkjoin_scheduler.dialect import JoinKind
from forkjoin_scheduler.events import Joined, Voted
from forkjoin_scheduler.family import Branch, ThreadEnd
from forkjoin_scheduler.fork import num_closing_tokens
from forkjoin_scheduler.join import JoinPlan, plan_join, plan_rewrite, written
from forkjoin_scheduler.vllm_seam import kv, queues
from forkjoin_scheduler.vllm_seam.answers import constrains_threads, own_constraint
from forkjoin_scheduler.vllm_seam.cancelling import Cancelling
from forkjoin_scheduler.vllm_seam.core import CAPPED, STOPPED
from forkjoin_scheduler.vllm_seam.cutting import Cutting
from forkjoin_scheduler.vllm_seam.live import LiveFamily
from forkjoin_scheduler.vllm_seam.outputs import Piece, injected
from forkjoin_scheduler.vllm_seam.requests import fold, truncate
from forkjoin_scheduler.vllm_seam.sampling import resumed_params, thread_params, with_logprobs
from forkjoin_scheduler.vllm_seam.voting import Voting
from forkjoin_scheduler.vllm_seam.wish import noted
from forkjoin_scheduler.vote import Vote


class Joining(Cutting):
    """Lets branches go on behind their threads."""

    if TYPE_CHECKING:  # of the layer above
        _voting: Voting
        _cancelling: Cancelling

    def _advance(self, live: LiveFamily) -> None:
        """Do what is due: end a family out of budget, join the branches whose threads have ended."""
        family = live.family
        if live.request.is_finished() and family.root.is_live:
            family.end(family.root, ThreadEnd.STOP)
            return
        if live.takes_over and live.stop_piece is not None and family.is_live:
            self._end_family(live, STOPPED)
        is_spent = live.is_overdrawn or (family.has_live_threads and not family.remaining)
        if is_spent and live.finish_reason is None:
            self._end_at_budget(live)
        if live.cancelled:
            self._cancelling.advance(live)
        if live.dialect.join.when == "first":
            self._cut_slower(live)
        self._voting.advance(live)
        if live.dialect.is_stitched and any(map(partial(self._outgrows, live), live.parked())):
            self._end_at_limit(live, "joined_too_long", live.dialect.policies.joined_too_long)
        while family.is_live and (branch := family.take_joinable()):
            live.clock_join(branch)
            self._join(live, branch)
        if family.is_live and not family.remaining:
            self._end_at_budget(live)
        if live.own_finish is not None and not family.is_live and live.finish_reason is None:
            live.finish_reason = live.own_finish

    def _end_at_budget(self, live: LiveFamily) -> None:
        self._end_at_limit(live, "total_tokens", live.dialect.policies.total_tokens)

    def _outgrows(self, live: LiveFamily, branch: Branch) -> bool:
        """Whether the threads of a parked ``branch`` hold more already than its joined context may."""
        own = sum(len(t.token_ids) for t in branch.waits_for)
        return branch.waits_for[0].fork_len + own >= self.max_model_len

    def _join(self, live: LiveFamily, branch: Branch) -> None:
        threads = branch.waits_for
        if live.stop_reason is not None and any(t.end is ThreadEnd.REQUEST_STOP for t in threads):
            self._end_branch(live, branch, ThreadEnd.REQUEST_STOP)
            return
        request = self._request_of(branch)
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
            self._end_at_limit(live, "joined_too_long", live.dialect.policies.joined_too_long)
        elif is_spent:
            self._end_at_budget(live)
        elif plan.end is not None or not join.goes_on:
            end = plan.end or self._end_of_all(branch)
            if end is not ThreadEnd.LENGTH and branch is live.family.root:
                # vLLM keeps the last token of a stopped request out of its text.
                transcript.push([Piece(self._eos_of(branch))])
            branch.token_ids += plan.token_ids
            self._end_branch(live, branch, end)
        else:
            self._resume(live, branch, request, plan)

    def _plan_join(self, live: LiveFamily, branch: Branch, request: Request) -> JoinPlan:
        if live.dialect.join.kind is JoinKind.REWRITE:
            return plan_rewrite(live.dialect, branch.waits_for, request._all_token_ids, self._tokenizer)
        return plan_join(live.dialect, branch.waits_for, self._tokenizer, live.wish.options.closing)

    def _room_behind_join(self, live: LiveFamily, branch: Branch, num_tokens: int) -> int:
        offset = self._offset_behind(live, branch.waits_for) if live.dialect.is_stitched else 0
        return self._room(live, branch, num_tokens, offset)

    def _room(self, live: LiveFamily, branch: Branch, num_tokens: int, offset: int = 0) -> int:
        """Tokens that a context of ``num_tokens`` can still take, in KV slots and in positions.

        What closes a stitched thread must find room behind them.
        """
        is_root = branch is live.family.root
        num_closing = 0 if is_root else num_closing_tokens(live.dialect, self._tokenizer)
        return self.max_model_len - num_tokens - max(offset, 0) - num_closing

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

    def _resume(self, live: LiveFamily, branch: Branch, request: Request, plan: JoinPlan) -> None:
        """Let ``branch`` go on behind its threads: on KV that is there, the rest prefilled."""
        family, threads = live.family, list(branch.waits_for)
        wish = noted(request)
        if plan.keep is not None:
            self._rewind(branch, request, plan.keep)
        num_tokens = request.num_tokens + len(plan.token_ids)
        family.join(branch, list(plan.token_ids))
        params = self._params_behind_join(live, branch, self._room_behind_join(live, branch, num_tokens))
        num_computed_tokens = request.num_computed_tokens
        if live.dialect.is_stitched:
            stitched = self._stitched(live, {t: live.held.pop(t) for t in threads})
            branch.offset = self._offset_behind(live, threads)
            branch.stitched_len = num_computed_tokens = stitched.num_tokens
            self._start_stitched(request, stitched, ((0, branch.offset),))
        fold(request, plan.token_ids, params)
        if branch is family.root:
            shown = live.dialect.join.shows_threads
            self._answers.joined(request, plan.closing_ids if shown else plan.token_ids)
        if held := self._prefilled_ahead(live, branch):
            kv.adopt(self.kv_cache_manager, request, held)
            num_computed_tokens = held.num_tokens
        if wish is not None:
            wish.since = request.num_tokens
        if not live.dialect.is_stitched:  # the last token is computed once more, where nothing follows it
            num_computed_tokens = min(num_computed_tokens, request.num_tokens - 1)
        queues.resume(self, request, num_computed_tokens)
        num_prefilled = num_tokens - num_computed_tokens
        live.tell(Joined(parent_index=branch.index, prefilled_tokens=num_prefilled))

    def _rewind(self, branch: Branch, request: Request, num_tokens: int) -> None:
        """Let a parked ``request`` be as it was behind ``num_tokens`` tokens, to go on otherwise.

        Its blocks go back: they may be hashed by the tokens that are cut off.
        """
        branch.cut_context(num_tokens)
        truncate(request, num_tokens)
        request.num_computed_tokens = kv.keep(self.kv_cache_manager, request, 0)

    def _params_behind_join(self, live: LiveFamily, branch: Branch, room: int) -> Any:
        if branch is not live.family.root:
            return self._thread_params(live, branch, room)
        return resumed_params(
            live.wish.params,
            live.dialect.sampling.after_join,
            max_tokens=live.budget(branch, room),
            generated=live.family.num_generated,
            salt=live.next_salt(branch),
        )

    def _thread_params(self, live: LiveFamily, thread: Branch, room: int) -> Any:
        assert thread.plan is not None
        params = thread_params(
            live.wish.params,
            live.dialect.sampling.thread,
            end_id=live.wish.spoken.end_id(thread.plan),
            max_tokens=live.budget(thread, room),
            generated=live.family.num_generated,
            salt=live.next_salt(thread),
            structured=self._structured_of(live, thread),
            not_written=live.wish.not_in_threads,
        )
        if live.pruner is not None:
            with_logprobs(params, live.pruner.policy.num_logprobs, self.vllm_config.model_config.max_logprobs)
        return params

    @staticmethod
    def _structured_of(live: LiveFamily, thread: Branch) -> StructuredOutputsParams | None:
        """What the text of a thread is to obey."""
        if branches := live.wish.options.branches:
            return own_constraint(branches[thread.position])
        is_answer = constrains_threads(live.dialect.join.kind)
        return live.wish.params.structured_outputs if is_answer else None

    def _eos_of(self, branch: Branch) -> int:
        """The end-of-sequence token that the first thread to write one wrote."""
        wrote = (t.token_ids[-1] for t in branch.waits_for if not t.forks and written(t) != t.token_ids)
        return next(wrote, min(self._eos_ids, default=0))

    def _end_branch(self, live: LiveFamily, branch: Branch, end: ThreadEnd) -> None:
        """A parked ``branch`` ends with its threads: the request, or a thread that had forked."""
        status = CAPPED if end is ThreadEnd.LENGTH else STOPPED
        if branch is live.family.root:
            self._end_family(live, status)
            return
        if held := self._prefilled_ahead(live, branch):
            kv.release(self.kv_cache_manager, held)
        self._release_held(live, branch.waits_for)
        super().finish_requests([branch.request_id], status)
        self._end_thread(live, branch, end)
