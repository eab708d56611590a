"""What branches write is heard token by token: what it calls for, and where a branch ends or stands still.

A step may bring several tokens of a branch, where drafts of them were right (speculative decoding). They are
booked one after the other, up to the first that ends or parks the branch. What stands after that is dropped
before it is appended or hashed: without drafts it would never have been sampled.

Whether a branch stands still is therefore decided here, by a plan; what is planned is done at the end of the
step. One that goes on keeps its whole run: the workers hold it already, and would go on after it.

Invariant (pinned by tests): a branch whose run was cut is parked or has ended before the next step.
"""

from __future__ import annotations

from collections.abc import Callable

from vllm.v1.request import Request, RequestStatus

from forkjoin_scheduler.dialects.bound import WINDOW_TOKENS
from forkjoin_scheduler.dialects.dialect import ForkAt
from forkjoin_scheduler.dialects.policies import Policy
from forkjoin_scheduler.families.family import BranchState
from forkjoin_scheduler.families.fork import ForkPlan, Refusal
from forkjoin_scheduler.machine import forking, planning
from forkjoin_scheduler.machine.forking import Fork
from forkjoin_scheduler.vllm_seam.core import STOPPED, Core
from forkjoin_scheduler.vllm_seam.fence import Fence
from forkjoin_scheduler.vllm_seam.starts.answers import Answers
from forkjoin_scheduler.vllm_seam.starts.forkjoin_params import ForkJoinParams
from forkjoin_scheduler.vllm_seam.starts.requests import truncate
from forkjoin_scheduler.vllm_seam.threads.forking import Forks

#: What vLLM's ``_update_request_with_output`` is: of a request, tokens, and whether they are out of date.
Append = Callable[[Request, list[int], bool], tuple[list[int], bool]]


class Hearing:
    """Books the tokens of a step, and plans what they call for. Keeps nothing."""

    def __init__(self, core: Core, fence: Fence, answers: Answers, forks: Forks) -> None:
        self._core = core
        self._fence = fence
        self._answers = answers
        self._forks = forks

    def book(
        self,
        request: Request,
        fj_params: ForkJoinParams,
        new_token_ids: list[int],
        is_stale: bool,
        append: Append,
    ) -> tuple[list[int], bool]:
        """Take in what ``request`` wrote in a step; returns what of it counts, and whether it has ended.

        ``append``: vLLM's own, which takes the next tokens of a request.
        """
        if fj_params.at_prompt:
            # It forks before it writes: the sample is dropped, and the placeholder of it goes at the fork.
            fj_params.at_prompt = False
            self._forks.triggered.append((request, None))
            return append(request, [], is_stale)
        booked: list[int] = []
        goes_on = True
        for token_id in new_token_ids:
            before = request.status
            is_answer = request.structured_output_request is not None and self._is_answer(request, booked)
            _, stopped = append(request, [token_id], is_stale)
            booked.append(token_id)
            try:
                goes_on = self._hear(request, fj_params, booked, stopped, before, is_answer)
            except Exception as error:
                self._fence.contain("hear", error, request)
                goes_on = False
            if not goes_on:
                break
        return booked, not goes_on and request.is_finished()

    def _is_answer(self, request: Request, booked: list[int]) -> bool:
        """Whether what ``request`` writes behind ``booked`` is of an answer that obeys a grammar."""
        return self._fence.answer("hear", request, lambda r: self._answers.has_begun_in(r, booked), False)

    def _hear(
        self,
        request: Request,
        fj_params: ForkJoinParams,
        booked: list[int],
        stopped: bool,
        before: RequestStatus,
        is_answer: bool,
    ) -> bool:
        """Take in the token booked last; returns whether ``request`` goes on after it in this step.

        ``booked``: all that it wrote in this step, from which an end of sequence that forks is taken back.
        ``before``: its status before it wrote the last. ``is_answer``: whether that is of an answer that
        obeys a grammar: what would call for a fork is the answer's own text there.
        """
        live = self._core.live.get(request.request_id)
        token_id, is_taken_back, may_call = booked[-1], False, False
        if stopped:
            goes_on, may_call = False, not is_answer
            is_taken_back = may_call and self._goes_on_instead(request, fj_params, before)
            if is_taken_back:
                booked.pop()
        elif fj_params.bound_dialect.dialect.tags_are != "tokens" and self._completes_end(
            request, fj_params, booked
        ):
            goes_on = False
        else:
            calls = fj_params.bound_dialect.calls
            may_call = not is_answer and (calls is None or token_id in calls)
            goes_on = not may_call or self._detect_triggers(request, fj_params, len(booked))
        if live is not None:
            live.family.generated(live.family.root, [token_id])
            if not live.buffers_parent_output and not is_taken_back:
                live.family.num_shown += 1
            live.clock_token(live.family.root)
            goes_on = goes_on and live.family.remaining > 0
        elif may_call and (new := self._core.live.get(request.request_id)):
            new.num_led = len(booked)
        return goes_on

    def _completes_end(self, request: Request, fj_params: ForkJoinParams, booked: list[int]) -> bool:
        """Whether ``request`` has written the text that ends it; it is stopped then."""
        if request.request_id not in self._core.threads:
            return self._ends_answer(request, fj_params, booked)
        _, thread = self._core.threads[request.request_id]
        assert thread.plan is not None
        if not fj_params.bound_dialect.ends(thread.plan, [*thread.token_ids[-WINDOW_TOKENS:], *booked]):
            return False
        request.status, request.stop_reason = STOPPED, thread.plan.end
        return True

    def _ends_answer(self, request: Request, fj_params: ForkJoinParams, booked: list[int]) -> bool:
        """The same of a request itself. An end of sequence follows its text: vLLM shows no last token."""
        start = max(fj_params.since, request.num_tokens - WINDOW_TOKENS)
        text = fj_params.bound_dialect.stopped_by(request._all_token_ids[start:])
        if text is None:
            return False
        request.status, request.stop_reason = STOPPED, text
        eos = min(self._core.eos_ids, default=0)
        request._all_token_ids.append(eos)
        request._output_token_ids.append(eos)
        booked.append(eos)
        return True

    def _goes_on_instead(self, request: Request, fj_params: ForkJoinParams, before: RequestStatus) -> bool:
        """Whether an end of sequence is taken back, as a fork or the end of a summary takes its place.

        ``before``: its status before it ended. It may have been preempted with that token in flight.
        """
        dialect = fj_params.bound_dialect.dialect
        if request.status != RequestStatus.FINISHED_STOPPED:
            return False
        if request.stop_reason is not None and request.stop_reason not in self._core.eos_ids:
            return False
        if dialect.fork_at is ForkAt.END and (plan := self._fork_instead(request, fj_params)):
            self._forks.triggered.append((request, plan))
        elif dialect.summary is None or not self._forks.close_summary(request):
            return False
        request.status, request.stop_reason = before, None
        num_tokens = request.num_tokens - 1
        truncate(request, num_tokens, self._core.hashes_before(request, num_tokens))
        return True

    def _fork_instead(self, request: Request, fj_params: ForkJoinParams) -> ForkPlan | None:
        """The fork that a turn which ends here calls for."""
        context = request._all_token_ids[:-1]
        if not fj_params.bound_dialect.ends_turn_with_fork(context[fj_params.since :]):
            return None
        is_first = request.request_id not in self._core.live
        live, branch = self._core.branch_of(request)
        plan = self._forks.plan(live, branch, context, fj_params.since)
        if isinstance(plan, Refusal):
            forking.emit_refused(live, branch, plan)
            return None
        if is_first and branch is live.family.root:
            live.family.num_shown -= 1  # the end of sequence does not leave
        live.num_planned += 1
        return plan

    def _detect_triggers(self, request: Request, fj_params: ForkJoinParams, num_in_run: int) -> bool:
        """Plan what the token that ``request`` wrote last calls for; returns whether it goes on after it.

        ``num_in_run``: tokens that it has written in this step. A prompt that ends in the middle of a tag
        calls for nothing: only what was written since does.
        """
        if request._all_token_ids[-1] == fj_params.bound_dialect.summary_end_id:
            return self._hear_summary_end(request)
        wrote = request._all_token_ids[max(fj_params.since, request.num_tokens - WINDOW_TOKENS) :]
        if wrote and fj_params.bound_dialect.triggers(wrote):
            return self._hear_trigger(request, fj_params, num_in_run)
        if wrote and (number := fj_params.bound_dialect.asked_for(wrote)) is not None:
            return self._hear_question(request, number)
        if text := fj_params.bound_dialect.written_itself(request._all_token_ids):
            return self._hear_stray(request, text)
        return True

    def _hear_trigger(self, request: Request, fj_params: ForkJoinParams, num_in_run: int) -> bool:
        live, branch = self._core.branch_of(request)
        if branch.state is not BranchState.DECODING:
            return True
        plan = self._forks.plan(live, branch, request._all_token_ids, fj_params.since)
        if isinstance(plan, Refusal):
            if plan.policy is not Policy.SEQUENTIAL:
                self._forks.triggered.append((request, plan))
                return False
            fj_params.since = request.num_tokens
            forking.emit_refused(live, branch, plan)
            return True
        live.num_planned += 1
        if live.dialect.join.waits:
            self._forks.triggered.append((request, plan))
            return False
        since, fj_params.since = fj_params.since, request.num_tokens
        fork = Fork(plan, request.num_tokens, since, num_in_run)
        self._core.forking[request.request_id] = request
        self._forks.beside.setdefault(request.request_id, []).append(fork)
        return True

    def _hear_question(self, request: Request, number: str) -> bool:
        live, branch = self._core.branch_of(request)
        if branch.state is not BranchState.DECODING:
            return True
        refusal = self._forks.refusal_to_ask(live, branch, number)
        if refusal is None or refusal.policy is not Policy.SEQUENTIAL:
            self._forks.asking.append((request, number))
            return False
        forking.emit_refused(live, branch, refusal)
        return True

    def _hear_summary_end(self, request: Request) -> bool:
        whose = self._core.whose(request.request_id)
        refusal = None if whose is None else whose[0].end_summary(whose[1])
        if refusal is not None:
            self._forks.triggered.append((request, refusal))
        return refusal is None

    def _hear_stray(self, request: Request, text: str) -> bool:
        swap = planning.swap(*self._core.branch_of(request), text)
        if swap is not None:
            self._forks.swapping.append((request, swap))
        return swap is None
