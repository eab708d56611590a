"""What a branch calls for: a trigger forks it, a question for a thread's result parks it."""

from __future__ import annotations

from dataclasses import replace

from vllm.v1.request import Request, RequestStatus

from forkjoin_scheduler.dialect import Context, ForkAt, JoinKind, Policy
from forkjoin_scheduler.events import Forked, NewThread, Refused
from forkjoin_scheduler.explicit import explicit_plan
from forkjoin_scheduler.family import Branch, BranchState
from forkjoin_scheduler.fork import ForkPlan, Refusal, has_room, plan_fork
from forkjoin_scheduler.join import cut_last
from forkjoin_scheduler.patterns import find_all
from forkjoin_scheduler.stitch import num_inherited, thread_offset
from forkjoin_scheduler.transcript import Transcript
from forkjoin_scheduler.vllm_seam import kv, queues
from forkjoin_scheduler.vllm_seam.cancelling import Cancelling
from forkjoin_scheduler.vllm_seam.joining import Joining
from forkjoin_scheduler.vllm_seam.live import LiveFamily
from forkjoin_scheduler.vllm_seam.outputs import injected
from forkjoin_scheduler.vllm_seam.planned import Fork, Swap
from forkjoin_scheduler.vllm_seam.requests import fold, new_request
from forkjoin_scheduler.vllm_seam.voting import Voting
from forkjoin_scheduler.vllm_seam.wish import Wish, note, noted
from forkjoin_scheduler.vote import Vote

#: Also one whose grammar is compiled first.
_NOT_STARTED = (RequestStatus.WAITING, RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR)


class Forking(Joining):
    """Acts at the end of a step on what branches have called for in it (``hearing.py``)."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self._voting, self._cancelling = Voting(self), Cancelling(self)
        #: Requests that fork at the end of this step, with the plan where it is made already.
        self._triggered: list[tuple[Request, ForkPlan | Refusal | None]] = []
        #: Requests that ask for the result of a thread, by its number.
        self._asking: list[tuple[Request, str]] = []
        #: Requests that have written what the dialect swaps, and where.
        self._swapping: list[tuple[Request, Swap]] = []
        #: Parked branches whose threads have not all got their copies of its partly filled last block.
        self._copied_from: list[tuple[LiveFamily, Branch]] = []

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
        since, wish.since = wish.since, request.num_tokens
        if isinstance(plan, Refusal):
            self._refuse(live, branch, plan)
            if not request.is_finished():
                self._sample_again(request)
            return
        if request.prefill_stats is not None:  # nothing has left yet
            request.prefill_stats.finalize(kv.num_cached_tokens(self.kv_cache_manager, request))
            live.begins = branch is live.family.root
        if live.dialect.join.waits:
            queues.park(self, request)
        self._fork(live, branch, Fork(request, plan, request.num_tokens, since))

    def _fork(self, live: LiveFamily, branch: Branch, fork: Fork) -> None:
        """Start the threads of ``fork``; ``branch`` stands still by now, if its dialect wants that."""
        request, plan = fork.request, fork.plan
        live.num_planned = max(live.num_planned - 1, 0)
        waits = live.dialect.join.waits
        fork_len = 0
        if live.dialect.thread.context is Context.PARENT:
            fork_len = fork.num_tokens - live.dialect.thread.without_trigger
        threads = live.family.fork(
            branch,
            plan,
            fork_len,
            waits=waits,
            offset=self._offset_of_threads(live, branch),
            num_behind=request.num_tokens - fork.num_tokens,
        )
        self._open_transcripts(live, branch, threads)
        self._expect_newlines(live, branch, threads, request._all_token_ids[fork.since : fork.num_tokens])
        live.clock_fork(branch)
        self._voting.start(live, threads, request)
        if waits and self._needs_blocks_of(live, threads[0]):
            self._copied_from.append((live, branch))
        live.tell(
            Forked(
                num_duplicates=plan.num_duplicates,
                num_later=len(live.later),
                shared_tokens=min(request.num_computed_tokens, fork_len),
                parent_index=branch.index,
                threads=[
                    NewThread(index=t.index, number=p.number, title=p.title)
                    for t, p in zip(threads, plan.threads, strict=True)
                ],
            )
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
            num_forks=live.family.num_forks + live.num_planned,
            depth=branch.depth,
            max_model_len=self.max_model_len - max(self._offset_of_threads(live, branch), 0),
        )
        if isinstance(plan, ForkPlan) and any(
            self._is_numbered(live, branch, t.number) for t in plan.threads
        ):
            return Refusal("duplicate_outline", Policy.SEQUENTIAL)
        return plan

    def _is_numbered(self, live: LiveFamily, branch: Branch, number: str) -> bool:
        """Whether ``branch`` knows a thread by ``number``, or will at the end of this step."""
        if live.dialect.join.kind is not JoinKind.ON_DEMAND:
            return False
        planned = [t for fork in self._beside.get(branch.request_id, ()) for t in fork.plan.threads]
        return (branch, number) in live.numbered or any(t.number == number for t in planned)

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

    def _plan_swap(self, request: Request, text: str) -> Swap | None:
        """What takes the place of ``text``, which ``request`` has just written; None if there is no room."""
        live, branch = self._branch_of(request)
        keep, before = cut_last(text, request._all_token_ids, self._tokenizer)
        swap = Swap(keep, (*before, *self._tokenizer.encode(live.dialect.swaps[text])))
        has_room = self._room(live, branch, swap.num_tokens) > 0
        return swap if has_room and branch.state is BranchState.DECODING else None

    def _swap(self, request: Request, swap: Swap) -> None:
        """Let ``request`` go on behind what the dialect has in the place of what it wrote."""
        if request.is_finished():
            return
        live, branch = self._branch_of(request)
        if branch.state is not BranchState.DECODING:
            return
        live.tell(Refused(parent_index=branch.index, reason="stray_tag", policy="swap"))
        queues.park(self, request)
        branch.take_back(request.num_tokens - swap.keep, swap.token_ids)
        self._rewind(branch, request, swap.keep)
        room = self._room(live, branch, swap.num_tokens)
        fold(request, swap.token_ids, self._params_behind_join(live, branch, room))
        if branch is live.family.root:
            self._answers.joined(request, swap.token_ids)
        queues.resume(self, request, 0)
        live.transcripts[branch].push(injected(swap.token_ids))

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
        policy = refusal.policy.value
        live.tell(Refused(parent_index=branch.index, reason=refusal.reason, policy=policy))
