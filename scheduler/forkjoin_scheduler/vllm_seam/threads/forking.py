"""What a branch has called for, done at the end of the step.

A trigger forks it, a question for a thread's result parks it.
"""

from __future__ import annotations

from vllm.v1.request import Request, RequestStatus

from forkjoin_scheduler.dialects.dialect import Context, ForkAt
from forkjoin_scheduler.dialects.patterns import find_all
from forkjoin_scheduler.dialects.policies import Policy
from forkjoin_scheduler.machine.family import Branch, BranchState
from forkjoin_scheduler.machine.fork import ForkPlan, Refusal
from forkjoin_scheduler.machine.stitch import num_inherited
from forkjoin_scheduler.machine.transcript import Transcript
from forkjoin_scheduler.machine.vote import Vote
from forkjoin_scheduler.publish.events import Forked, NewThread, Refused
from forkjoin_scheduler.vllm_seam.cache import kv
from forkjoin_scheduler.vllm_seam.core import Core
from forkjoin_scheduler.vllm_seam.front_end.outputs import injected
from forkjoin_scheduler.vllm_seam.live import LiveFamily
from forkjoin_scheduler.vllm_seam.starts import queues
from forkjoin_scheduler.vllm_seam.starts.answers import Answers
from forkjoin_scheduler.vllm_seam.starts.requests import fold
from forkjoin_scheduler.vllm_seam.threads.cutting import Cutting
from forkjoin_scheduler.vllm_seam.threads.ending import Ends
from forkjoin_scheduler.vllm_seam.threads.joining import Joins
from forkjoin_scheduler.vllm_seam.threads.params import Params
from forkjoin_scheduler.vllm_seam.threads.planned import Fork, Swap
from forkjoin_scheduler.vllm_seam.threads.planning import Planning
from forkjoin_scheduler.vllm_seam.threads.voting import Voting

#: Also one whose grammar is compiled first.
_NOT_STARTED = (RequestStatus.WAITING, RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR)


class Forks:
    """Acts on what branches have called for. Owns what is to be done at the end of this step."""

    def __init__(
        self,
        core: Core,
        answers: Answers,
        ends: Ends,
        cutting: Cutting,
        params: Params,
        joins: Joins,
        voting: Voting,
        planning: Planning,
    ) -> None:
        self._core = core
        self._answers = answers
        self._ends = ends
        self._cutting = cutting
        self._params = params
        self._joins = joins
        self._voting = voting
        self._planning = planning
        #: Requests that fork at the end of this step, with the plan where it is made already.
        self.triggered: list[tuple[Request, ForkPlan | Refusal | None]] = []
        #: Requests that ask for the result of a thread, by its number.
        self.asking: list[tuple[Request, str]] = []
        #: Requests that have written what the dialect swaps, and where.
        self.swapping: list[tuple[Request, Swap]] = []
        #: Parked branches whose threads have not all got their copies of its partly filled last block.
        self.copied_from: list[tuple[LiveFamily, Branch]] = []

    def try_fork(self, request: Request, plan: ForkPlan | Refusal | None) -> None:
        """Fork ``request``, which has come to where it forks, unless something speaks against it."""
        if request.is_finished():
            return
        live, branch = self._core.branch_of(request)
        wish = self._core.wishes[request.request_id]
        if branch.state is not BranchState.DECODING:
            return
        plan = plan or self._planning.fork(live, branch, request._all_token_ids, wish)
        since, wish.since = wish.since, request.num_tokens
        if isinstance(plan, Refusal):
            self._refuse(live, branch, plan)
            if not request.is_finished():
                self._sample_again(request)
            return
        if request.prefill_stats is not None:  # nothing has left yet
            request.prefill_stats.finalize(kv.num_cached_tokens(self._core.kv_cache_manager, request))
            live.begins = branch is live.family.root
        if live.dialect.join.waits:
            queues.park(self._core.scheduler, request)
        self.fork(live, branch, Fork(request, plan, request.num_tokens, since))

    def fork(self, live: LiveFamily, branch: Branch, fork: Fork) -> None:
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
            offset=self._planning.offset_of_threads(live, branch),
            num_behind=request.num_tokens - fork.num_tokens,
        )
        self._open_transcripts(live, branch, threads)
        self._expect_newlines(live, branch, threads, request._all_token_ids[fork.since : fork.num_tokens])
        live.clock_fork(branch)
        self._voting.start(live, threads, request)
        if waits and self._ends.needs_blocks_of(live, threads[0]):
            self.copied_from.append((live, branch))
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
            queues.park(self._core.scheduler, request)
            # the last token is computed once more, to sample from
            queues.resume(
                self._core.scheduler,
                request,
                kv.keep(self._core.kv_cache_manager, request, request.num_tokens - 1),
            )

    def _open_transcripts(self, live: LiveFamily, branch: Branch, threads: list[Branch]) -> None:
        if live.dialect.join.shows_threads:
            plans = [t.plan for t in threads]
            headers = [injected(p.joined_header_ids) for p in plans if p is not None]
            transcripts = live.transcripts[branch].fork(headers)
        else:
            transcripts = [Transcript() for _ in threads]
        live.transcripts |= zip(threads, transcripts, strict=True)
        if live.vote is None and (ballot := live.dialect.join.ballot) is not None:
            live.vote = Vote(ballot, self._core.tokenizer, len(threads))
        if live.dialect.join.question is not None:
            live.numbered |= {(branch, t.plan.number): t for t in threads if t.plan is not None}

    def _expect_newlines(
        self, live: LiveFamily, branch: Branch, threads: list[Branch], wrote: list[int]
    ) -> None:
        """Note which newlines the dialect wants where ``branch``, which ``wrote`` this, has forked."""
        thread, join = live.dialect.thread, live.dialect.join
        after = thread.newlines_after
        if thread.newlines and (after is None or find_all(after, self._core.tokenizer.decode(wrote))):
            live.newlines |= dict.fromkeys(threads, thread.newlines)
        if join.newlines_behind:
            live.newlines[branch] = join.newlines_behind

    def _refuse(self, live: LiveFamily, branch: Branch, refusal: Refusal) -> None:
        tell_refused(live, branch, refusal)
        if branch is live.family.root and live.dialect.fork_at is ForkAt.PROMPT:
            self._answers.did_not_join(self._core.request_of(branch))
        if refusal.policy is Policy.END_REQUEST:
            self._cutting.end_closed(live, refused=branch)

    def drop_copied_tail(self, live: LiveFamily, branch: Branch) -> None:
        """Let go of what a parked branch holds in vain: it goes on with the first thread's copy of it.

        The copies are made in the step just scheduled: whoever gets the block writes it in a later one.
        One thread that lost its copy, and one whose first thread lost it, compute these tokens anew; where
        they can't, for threads were stitched in that block, the branch keeps it.
        """
        if branch.state is not BranchState.PARKED:
            return
        if any(self._has_not_started(thread) for thread in branch.waits_for):
            self.copied_from.append((live, branch))
        elif (request := self._core.request_of(branch)).num_computed_tokens:
            needed = max(map(num_inherited, branch.waits_for))
            queues.repark(
                self._core.scheduler,
                request,
                kv.drop_tail(self._core.kv_cache_manager, request, needed=needed),
            )

    def _has_not_started(self, thread: Branch) -> bool:
        request = self._core.requests.get(thread.request_id)
        return request is not None and request.status in _NOT_STARTED

    def swap(self, request: Request, swap: Swap) -> None:
        """Let ``request`` go on behind what the dialect has in the place of what it wrote."""
        if request.is_finished():
            return
        live, branch = self._core.branch_of(request)
        if branch.state is not BranchState.DECODING:
            return
        live.tell(Refused(parent_index=branch.index, reason="stray_tag", policy="swap"))
        queues.park(self._core.scheduler, request)
        branch.take_back(request.num_tokens - swap.keep, swap.token_ids)
        self._joins.rewind(branch, request, swap.keep)
        room = self._params.room(live, branch, swap.num_tokens)
        fold(request, swap.token_ids, self._params.behind_join(live, branch, room))
        if branch is live.family.root:
            self._answers.joined(request, swap.token_ids)
        queues.resume(self._core.scheduler, request, 0)
        live.transcripts[branch].push(injected(swap.token_ids))

    def wait_for(self, request: Request, number: str) -> None:
        """``request`` has asked for the result of a thread: it stands still until that has ended."""
        if request.is_finished():
            return
        live, branch = self._core.branch_of(request)
        thread = live.numbered.get((branch, number))
        if branch.state is not BranchState.DECODING:
            return
        if thread is None:
            self._refuse(live, branch, Refusal("unknown_thread", live.dialect.policies.unknown_thread))
            return
        queues.park(self._core.scheduler, request)
        live.family.wait(branch, [thread])


def tell_refused(live: LiveFamily, branch: Branch, refusal: Refusal) -> None:
    """Tell the front end that ``branch`` was refused what it called for, and what it does then."""
    policy = refusal.policy.value
    live.tell(Refused(parent_index=branch.index, reason=refusal.reason, policy=policy))
