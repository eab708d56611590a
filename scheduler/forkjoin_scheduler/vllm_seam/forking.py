"""What a branch's own tokens do: a trigger forks it, a question for a thread's result parks it."""

from __future__ import annotations

from dataclasses import replace

from vllm.v1.request import Request, RequestStatus

from forkjoin_scheduler.bound import WINDOW_TOKENS
from forkjoin_scheduler.dialect import Context, ForkAt, JoinKind, Policy
from forkjoin_scheduler.explicit import explicit_plan
from forkjoin_scheduler.family import Branch, BranchState
from forkjoin_scheduler.fork import ForkPlan, Refusal, has_room, plan_fork
from forkjoin_scheduler.join import cut_last
from forkjoin_scheduler.patterns import find_all
from forkjoin_scheduler.stitch import num_inherited, thread_offset
from forkjoin_scheduler.transcript import Transcript
from forkjoin_scheduler.vllm_seam import kv, queues
from forkjoin_scheduler.vllm_seam.joining import Joining
from forkjoin_scheduler.vllm_seam.live import LiveFamily
from forkjoin_scheduler.vllm_seam.outputs import injected
from forkjoin_scheduler.vllm_seam.requests import fold, new_request, truncate
from forkjoin_scheduler.vllm_seam.voting import Voting
from forkjoin_scheduler.vllm_seam.wish import Wish, note, noted
from forkjoin_scheduler.vote import Vote

#: Also one whose grammar is compiled first.
_NOT_STARTED = (RequestStatus.WAITING, RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR)


class Forking(Joining):
    """Hears triggers as tokens are booked, and acts on them at the end of the step."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self._voting = Voting(self)
        #: Requests that fork at the end of this step, with the plan where it is made already.
        self._triggered: list[tuple[Request, ForkPlan | None]] = []
        #: Requests that ask for the result of a thread, by its number.
        self._asking: list[tuple[Request, str]] = []
        #: Requests that have written what the dialect swaps.
        self._swapping: list[tuple[Request, str]] = []
        #: Parked branches whose threads have not all got their copies of its partly filled last block.
        self._copied_from: list[tuple[LiveFamily, Branch]] = []

    # ---- vLLM's hook -----------------------------------------------------------------------

    def _update_request_with_output(
        self, request: Request, new_token_ids: list[int], is_stale: bool = False
    ) -> tuple[list[int], bool]:
        wish = noted(request)
        if wish is None or not new_token_ids:
            return super()._update_request_with_output(request, new_token_ids, is_stale)
        if wish.at_prompt:
            # It forks before it writes: the sample is dropped, and the placeholder of it goes at the fork.
            wish.at_prompt = False
            self._triggered.append((request, None))
            return super()._update_request_with_output(request, [], is_stale)
        before = request.status
        new_token_ids, stopped = super()._update_request_with_output(request, new_token_ids, is_stale)
        try:
            return self._hear(request, wish, new_token_ids, stopped, before)
        except Exception as error:
            self._contain("hear", error, request)
        return new_token_ids, request.is_finished()

    def _hear(
        self, request: Request, wish: Wish, new_token_ids: list[int], stopped: bool, before: RequestStatus
    ) -> tuple[list[int], bool]:
        """Book what ``request`` has written; returns what of it is to leave, and whether it ends with that.

        ``before``: its status before it wrote.
        """
        live = self._live.get(request.request_id) if self._live else None
        plan = None
        if self._answers.has_begun(request):
            pass  # what calls for a fork is the answer's own text there
        elif not stopped:
            only = wish.spoken.only_call
            if only is None or request._all_token_ids[-1] == only:
                self._listen(request, wish)
        elif plan := self._plan_instead_of_ending(request, wish, before):
            self._triggered.append((request, plan))
        if live is not None:
            live.family.generated(live.family.root, new_token_ids)
            if not live.takes_over and plan is None:
                live.family.num_shown += len(new_token_ids)
            live.clock_token(live.family.root)
        return (new_token_ids, stopped) if plan is None else ([], False)

    def _listen(self, request: Request, wish: Wish) -> None:
        """Note what the token that ``request`` has just written calls for at the end of the step.

        A prompt that ends in the middle of a tag calls for nothing: only what was written since does.
        """
        wrote = request._all_token_ids[max(wish.since, request.num_tokens - WINDOW_TOKENS) :]
        if wrote and wish.spoken.triggers(wrote):
            self._triggered.append((request, None))
        elif wrote and (number := wish.spoken.asked_for(wrote)):
            self._asking.append((request, number))
        elif text := wish.spoken.written_itself(request._all_token_ids):
            self._swapping.append((request, text))

    def _plan_instead_of_ending(self, request: Request, wish: Wish, before: RequestStatus) -> ForkPlan | None:
        """The fork that a turn which ends here calls for; its end of sequence is taken back then.

        ``before``: its status before it ended. It may have been preempted with that token in flight.
        """
        if wish.spoken.dialect.fork_at is not ForkAt.END or request.status != RequestStatus.FINISHED_STOPPED:
            return None
        if request.stop_reason is not None and request.stop_reason not in self._eos_ids:
            return None
        context = request._all_token_ids[:-1]
        if not wish.spoken.ends_turn_with_fork(context[wish.since :]):
            return None
        is_first = request.request_id not in self._live
        live, branch = self._branch_of(request)
        plan = self._plan_fork(live, branch, context, wish)
        if isinstance(plan, Refusal):
            self._tell_refused(live, branch, plan)
            return None
        if is_first and branch is live.family.root:
            live.family.num_shown -= 1  # the end of sequence does not leave
        request.status, request.stop_reason = before, None
        truncate(request, len(context))
        return plan

    # ---- fork ------------------------------------------------------------------------------

    def _try_fork(self, request: Request, plan: ForkPlan | Refusal | None) -> None:
        """Fork ``request``, which has come to where it forks, unless something speaks against it."""
        if request.is_finished():
            return
        live, branch = self._branch_of(request)
        wish = noted(request)
        assert wish is not None
        if branch.state is not BranchState.DECODING:
            return
        plan = plan or self._plan_fork(live, branch, request._all_token_ids, wish)
        if isinstance(plan, Refusal):
            wish.since = request.num_tokens
            self._refuse(live, branch, plan)
            if not request.is_finished():
                self._sample_again(request)
            return
        if request.prefill_stats is not None:  # nothing has left yet: the first tokens take them along
            request.prefill_stats.finalize(kv.num_cached_tokens(self.kv_cache_manager, request))
        waits = live.dialect.join.waits
        if waits:
            queues.park(self, request)
        wrote = request._all_token_ids[wish.since :]
        wish.since = request.num_tokens
        fork_len = 0
        if live.dialect.thread.context is Context.PARENT:
            fork_len = request.num_tokens - live.dialect.thread.without_trigger
        offset = self._offset_of_threads(live, branch)
        threads = live.family.fork(branch, plan, fork_len, waits=waits, offset=offset)
        self._open_transcripts(live, branch, threads)
        self._expect_newlines(live, branch, threads, wrote)
        live.clock_fork(branch)
        self._voting.start(live, threads, request)
        if waits and self._needs_blocks_of(live, threads[0]):
            self._copied_from.append((live, branch))
        live.tell(
            "forked",
            num_duplicates=plan.num_duplicates,
            num_later=len(live.later),
            shared_tokens=min(request.num_computed_tokens, fork_len),
            parent_index=branch.index,
            threads=[
                {"index": t.index, "number": p.number, "title": p.title}
                for t, p in zip(threads, plan.threads, strict=True)
            ],
        )

    def _sample_again(self, request: Request) -> None:
        """A fork behind the prompt was refused: the sample that was dropped for it is drawn anew."""
        if request.num_output_tokens == 0:
            queues.park(self, request)
            # the last token is computed once more, to sample from
            queues.resume(self, request, kv.keep(self.kv_cache_manager, request, request.num_tokens - 1))

    def _plan_fork(
        self, live: LiveFamily, branch: Branch, context: list[int], wish: Wish
    ) -> ForkPlan | Refusal:
        """The request may itself say into what it forks; otherwise the model has said so."""
        if wish.options.forks_at_prompt:
            asked_for = explicit_plan(wish.options)
            if live.family.limits.max_forks == 0:
                return Refusal("too_many_forks", live.dialect.policies.too_many_forks)
            if not has_room(asked_for.threads, len(context), self.max_model_len):
                return Refusal("no_room", live.dialect.policies.no_room)
            return asked_for
        plan = plan_fork(
            live.dialect,
            live.family.limits,
            context,
            self._tokenizer,
            since=wish.since,
            num_forks=live.family.num_forks,
            depth=branch.depth,
            max_model_len=self.max_model_len - max(self._offset_of_threads(live, branch), 0),
        )
        if isinstance(plan, ForkPlan) and any((branch, t.number) in live.numbered for t in plan.threads):
            return Refusal("duplicate_outline", Policy.SEQUENTIAL)
        return plan

    @staticmethod
    def _offset_of_threads(live: LiveFamily, branch: Branch) -> int:
        """The positions of the threads that ``branch`` would start, less their slots."""
        return thread_offset(branch.offset, live.dialect.positions) if live.dialect.is_stitched else 0

    def _open_transcripts(self, live: LiveFamily, branch: Branch, threads: list[Branch]) -> None:
        kind = live.dialect.join.kind
        if live.dialect.join.shows_threads:
            plans = [t.plan for t in threads]
            headers = [injected(p.joined_header_ids) for p in plans if p is not None]
            transcripts = live.transcripts[branch].fork(headers)
        else:
            transcripts = [Transcript() for _ in threads]
        live.transcripts |= zip(threads, transcripts, strict=True)
        if live.vote is None and live.dialect.join.result is not None:
            live.vote = Vote(live.dialect.join.result, self._tokenizer, len(threads))
        if kind is JoinKind.ON_DEMAND:
            live.numbered |= {(branch, t.plan.number): t for t in threads if t.plan is not None}

    def _expect_newlines(
        self, live: LiveFamily, branch: Branch, threads: list[Branch], wrote: list[int]
    ) -> None:
        """Note which newlines the dialect wants where ``branch``, which ``wrote`` this, has forked."""
        thread, join = live.dialect.thread, live.dialect.join
        after = thread.newlines_after
        if thread.newlines and (after is None or find_all(after, self._tokenizer.decode(wrote))):
            live.newlines |= dict.fromkeys(threads, thread.newlines)
        if join.newlines:
            live.newlines[branch] = join.newlines

    def _start_thread(self, live: LiveFamily, thread: Branch, parent: Request) -> None:
        assert thread.plan is not None
        token_ids = parent._all_token_ids[: thread.fork_len]
        token_ids += thread.plan.header_ids
        params = self._thread_params(live, thread, self._room(live, thread, len(token_ids), thread.offset))
        hashes = parent.block_hashes[: thread.fork_len // self.hash_block_size]
        request = new_request(live.request, thread.request_id, token_ids, params, hashes)
        self._answers.begin_thread(request, live.request, has_own=live.wish.options.branches is not None)
        self._threads[request.request_id] = (live, thread)
        note(request, replace(live.wish, since=len(token_ids), at_prompt=False))
        if live.dialect.is_stitched:
            self._set_start(request, thread, parent)
        queues.start(self, request)

    def _refuse(self, live: LiveFamily, branch: Branch, refusal: Refusal) -> None:
        self._tell_refused(live, branch, refusal)
        if branch is live.family.root and live.dialect.fork_at is ForkAt.PROMPT:
            self._answers.did_not_join(self._request_of(branch))
        if refusal.policy is Policy.END_REQUEST:
            self._end_closed(live, refused=branch)

    def _drop_copied_tail(self, live: LiveFamily, branch: Branch) -> None:
        """Let go of what a parked branch holds in vain: it goes on with the first thread's copy of it.

        The copies are made in the step just scheduled: whoever gets the block writes it in a later one.
        One thread that lost its copy, and one whose first thread lost it, compute these tokens anew; where
        they can't, for threads were stitched in that block, the branch keeps it.
        """
        if branch.state is not BranchState.PARKED:
            return
        if any(self._has_not_started(thread) for thread in branch.waits_for):
            self._copied_from.append((live, branch))
        elif (request := self._request_of(branch)).num_computed_tokens:
            needed = max(map(num_inherited, branch.waits_for))
            queues.repark(self, request, kv.drop_tail(self.kv_cache_manager, request, needed=needed))

    def _has_not_started(self, thread: Branch) -> bool:
        request = self.requests.get(thread.request_id)
        return request is not None and request.status in _NOT_STARTED

    # ---- what the model should not write itself --------------------------------------------

    def _swap(self, request: Request, text: str) -> None:
        """``request`` has written ``text``: what the dialect has for it takes its place, if there is room."""
        if request.is_finished():
            return
        live, branch = self._branch_of(request)
        keep, before = cut_last(text, request._all_token_ids, self._tokenizer)
        token_ids = [*before, *self._tokenizer.encode(live.dialect.swaps[text])]
        room = self._room(live, branch, keep + len(token_ids))
        if branch.state is not BranchState.DECODING or room <= 0:
            return
        live.tell("refused", parent_index=branch.index, reason="stray_tag", policy="swap")
        queues.park(self, request)
        branch.take_back(request.num_tokens - keep, token_ids)
        self._rewind(branch, request, keep)
        fold(request, token_ids, self._params_behind_join(live, branch, room))
        if branch is live.family.root:
            self._answers.joined(request, token_ids)
        queues.resume(self, request, 0)
        live.transcripts[branch].push(injected(token_ids))

    # ---- results on demand -----------------------------------------------------------------

    def _wait_for(self, request: Request, number: str) -> None:
        """``request`` has asked for the result of a thread: it stands still until that has ended."""
        if request.is_finished():
            return
        live, branch = self._branch_of(request)
        thread = live.numbered.get((branch, number))
        if branch.state is not BranchState.DECODING:
            return
        if thread is None:
            self._refuse(live, branch, Refusal("unknown_thread", live.dialect.policies.unknown_thread))
            return
        queues.park(self, request)
        live.family.wait(branch, [thread])

    @staticmethod
    def _tell_refused(live: LiveFamily, branch: Branch, refusal: Refusal) -> None:
        live.tell("refused", parent_index=branch.index, reason=refusal.reason, policy=refusal.policy.value)
