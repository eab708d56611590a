"""What a branch's text calls for, decided while its tokens are booked and done at the end of the step."""

from __future__ import annotations

from vllm.v1.request import Request

from forkjoin_scheduler.dialects.policies import Policy
from forkjoin_scheduler.joins.joined import cut_last
from forkjoin_scheduler.machine.family import Branch, BranchState
from forkjoin_scheduler.machine.fork import ForkPlan, Refusal, has_room, plan_fork
from forkjoin_scheduler.request.explicit import explicit_plan
from forkjoin_scheduler.vllm_seam.core import Core
from forkjoin_scheduler.vllm_seam.live import LiveFamily
from forkjoin_scheduler.vllm_seam.starts.wish import Wish
from forkjoin_scheduler.vllm_seam.threads.params import Params
from forkjoin_scheduler.vllm_seam.threads.planned import Fork, Swap


class Planning:
    """Plans forks and swaps. Owns the forks that are planned beside what goes on."""

    def __init__(self, core: Core, params: Params) -> None:
        self._core = core
        self._params = params
        #: Forks in what a request wrote in this step, in order, where it goes on beside its threads.
        self.beside: dict[str, list[Fork]] = {}

    def fork(self, live: LiveFamily, branch: Branch, context: list[int], wish: Wish) -> ForkPlan | Refusal:
        """The request may itself say into what it forks; otherwise the model has said so."""
        if wish.options.forks_at_prompt:
            asked_for = explicit_plan(wish.options)
            if live.family.limits.max_forks == 0:
                return Refusal("too_many_forks", live.dialect.policies.too_many_forks)
            if not has_room(asked_for.threads, len(context), self._core.max_model_len):
                return Refusal("no_room", live.dialect.policies.no_room)
            return asked_for
        plan = plan_fork(
            live.dialect,
            live.family.limits,
            context,
            self._core.tokenizer,
            since=wish.since,
            num_forks=live.family.num_forks + live.num_planned,
            depth=branch.depth,
            max_model_len=self._core.max_model_len - max(self.offset_of_threads(live, branch), 0),
        )
        if isinstance(plan, ForkPlan) and any(self.is_numbered(live, branch, t.number) for t in plan.threads):
            return Refusal("duplicate_outline", Policy.SEQUENTIAL)
        return plan

    def is_numbered(self, live: LiveFamily, branch: Branch, number: str) -> bool:
        """Whether ``branch`` knows a thread by ``number``, or will at the end of this step."""
        if live.dialect.join.question is None:
            return False
        planned = [t for fork in self.beside.get(branch.request_id, ()) for t in fork.plan.threads]
        return (branch, number) in live.numbered or any(t.number == number for t in planned)

    @staticmethod
    def offset_of_threads(live: LiveFamily, branch: Branch) -> int:
        """The positions of the threads that ``branch`` would start, less their slots."""
        return live.dialect.join.thread_offset(branch.offset, live.dialect.positions)

    def swap(self, request: Request, text: str) -> Swap | None:
        """What takes the place of ``text``, which ``request`` has just written; None if there is no room."""
        live, branch = self._core.branch_of(request)
        keep, before = cut_last(text, request._all_token_ids, self._core.tokenizer)
        swap = Swap(keep, (*before, *self._core.tokenizer.encode(live.dialect.swaps[text])))
        has_room = self._params.room(live, branch, swap.num_tokens) > 0
        return swap if has_room and branch.state is BranchState.DECODING else None
