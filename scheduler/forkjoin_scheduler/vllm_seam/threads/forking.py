"""Reports what requests have called for in a step to their machines, at the end of the step."""

from __future__ import annotations

from vllm.v1.request import Request

from forkjoin_scheduler.errors import IllegalTransition
from forkjoin_scheduler.families.family import Branch, BranchState
from forkjoin_scheduler.families.fork import ForkPlan, Refusal
from forkjoin_scheduler.machine import asking, effects, forking, planning
from forkjoin_scheduler.machine.forking import Fork
from forkjoin_scheduler.request.given import BEGIN, FORK
from forkjoin_scheduler.vllm_seam.cache import kv
from forkjoin_scheduler.vllm_seam.core import Core
from forkjoin_scheduler.vllm_seam.live import LiveFamily
from forkjoin_scheduler.vllm_seam.threads.giving import Giving
from forkjoin_scheduler.vllm_seam.threads.performing import Performing


class Forks:
    """Owns what branches have called for in this step."""

    def __init__(self, core: Core, performing: Performing, giving: Giving) -> None:
        self._core = core
        self._performing = performing
        self._giving = giving
        #: Requests that fork at the end of this step, with the plan where it is made already.
        self.triggered: list[tuple[Request, ForkPlan | Refusal | None]] = []
        #: Requests that ask for the result of a thread, by its number.
        self.asking: list[tuple[Request, str]] = []
        #: Requests that have written what the dialect swaps, and where.
        self.swapping: list[tuple[Request, effects.Swap]] = []
        #: Forks in what a request wrote in this step, in order, where it goes on beside its threads.
        self.beside: dict[str, list[Fork]] = {}

    def plan(self, live: LiveFamily, branch: Branch, context: list[int], since: int) -> ForkPlan | Refusal:
        """What the call at the end of ``context`` does."""
        return planning.plan(live, branch, context, since, self.beside.get(branch.request_id, ()))

    def refusal_to_ask(self, live: LiveFamily, branch: Branch, number: str) -> Refusal | None:
        """Why ``branch`` may not ask for threads by ``number``; None: it may at the end of this step."""
        return asking.refusal_to_ask(live, branch, number, self.beside.get(branch.request_id, ()))

    def try_fork(self, request: Request, plan: ForkPlan | Refusal | None) -> None:
        """Fork ``request``, which has reached its fork, unless something speaks against it."""
        if request.is_finished():
            return
        live, branch = self._core.branch_of(request)
        if branch.state is not BranchState.DECODING:
            return
        fj_params = self._core.fj_params[request.request_id]
        given = fj_params.given
        had_forked = given is BEGIN or (given is not None and given.then == FORK)
        if given is not None and self._giving.has_arrived(live, branch, request):
            self._note_prefill(live, branch, request)
            return
        if branch.planned:
            fj_params.since = request.num_tokens
            self._performing.perform(live, forking.next_stage(live, branch))
            return
        if had_forked:
            plan = planning.plan(live, branch, request._all_token_ids, fj_params.since, had_forked=True)
        plan = plan or self.plan(live, branch, request._all_token_ids, fj_params.since)
        since, fj_params.since = fj_params.since, request.num_tokens
        if isinstance(plan, Refusal):
            if had_forked:
                raise IllegalTransition(f"{request.request_id}: had forked, and may not now: {plan.reason}")
            self._performing.perform(live, forking.refuse(live, branch, plan))
            return
        self._note_prefill(live, branch, request)
        fork = Fork(plan, request.num_tokens, since)
        self._performing.perform(live, forking.fork(live, branch, fork))

    def _note_prefill(self, live: LiveFamily, branch: Branch, request: Request) -> None:
        """The answer begins where ``request`` has let out nothing yet."""
        if request.prefill_stats is not None:
            request.prefill_stats.finalize(kv.num_cached_tokens(self._core.kv_cache_manager, request))
            live.begins = branch is live.family.root

    def swap(self, request: Request, wanted: effects.Swap) -> None:
        """``request`` has written what the dialect has another text for."""
        if not request.is_finished():
            live, _ = self._core.branch_of(request)
            self._performing.perform(live, forking.swap(live, wanted))

    def close_summary(self, request: Request) -> bool:
        """Whether the end of a summary takes the place of the end of sequence that ``request`` wrote last."""
        whose = self._core.whose(request.request_id)
        swap = None if whose is None else planning.close_summary(*whose, request.num_tokens - 1)
        if swap is not None:
            self.swapping.append((request, swap))
        return swap is not None

    def wait_for(self, request: Request, number: str) -> None:
        """``request`` has asked for the result of a thread."""
        if not request.is_finished():
            live, branch = self._core.branch_of(request)
            self._performing.perform(live, asking.wait_for(live, branch, number))
