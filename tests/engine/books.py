"""The books of a scheduler, kept beside its own: what was generated, charged and shown, of each family."""

from __future__ import annotations

from collections import Counter
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.engine import EngineCoreOutput
from vllm.v1.request import Request

from forkjoin_scheduler.families.family import Family
from forkjoin_scheduler.families.thread_end import ThreadEnd
from forkjoin_scheduler.publish.events import FamilyEnded
from forkjoin_scheduler.vllm_seam.front_end import wire

#: How a thread ends whose last step may have come too late: its tokens were sampled, and then not taken.
_MAY_LOSE_SOME = (ThreadEnd.LENGTH, ThreadEnd.CANCELLED, ThreadEnd.CUT)


class Books:
    """Counts by what vLLM itself takes and what the front end gets, knowing nothing of budgets.

    ``kept``: tokens that vLLM appended to the requests of a family, sampled all; ``shown``: those that
    the front end got as the request's, of whatever origin.
    """

    def __init__(self, monkeypatch: Any) -> None:
        self.kept: Counter[str] = Counter()
        self.shown: Counter[str] = Counter()
        self.budgets: dict[str, int] = {}
        #: What a family has said of itself at its end.
        self.ended: dict[str, FamilyEnded] = {}
        self._families: dict[str, Family] = {}
        kept, update = self.kept, AsyncScheduler._update_request_with_output

        def counted(scheduler: Any, request: Request, new: list[int], is_stale: bool = False) -> Any:
            taken, stopped = update(scheduler, request, new, is_stale)
            if "#fill" not in request.request_id:
                kept[request.request_id.partition("#")[0]] += len(taken)
            return taken, stopped

        monkeypatch.setattr(AsyncScheduler, "_update_request_with_output", counted)

    def add(self, request_id: str, budget: int) -> None:
        """A request has come that may generate so many tokens in all."""
        self.budgets[request_id] = budget

    def take(self, output: EngineCoreOutput) -> None:
        """The front end gets ``output``."""
        if told := wire.unpack(output):
            self.ended |= {e.family: e for e in told.events if isinstance(e, FamilyEnded)}
        elif output.request_id in self.budgets:
            self.shown[output.request_id] += len(output.new_token_ids)

    def check_step(self, scheduler: Any) -> None:
        """Raise AssertionError unless each live family was charged what it generated, within its budget."""
        self._families |= {i: live.family for i, live in scheduler._core.live.items()}
        for request_id, family in self._families.items():
            charged, kept = family.num_generated, self.kept[request_id]
            late = sum(t.end in _MAY_LOSE_SOME for t in family.threads) * (1 + scheduler.num_spec_tokens)
            assert charged <= kept <= charged + late, f"{request_id}: {charged} charged, {kept} sampled"
            assert charged <= self.budgets[request_id], (
                f"{request_id}: {charged} of {self.budgets[request_id]}"
            )
            family.check_integrity()

    def check_end(self, aborted: set[str]) -> int:
        """Raise AssertionError unless each request that was not aborted has shown what it was charged.

        Returns how many families there were.
        """
        for request_id, budget in self.budgets.items():
            counts = self.ended.get(request_id)
            if counts is None:
                assert self.kept[request_id] <= budget, request_id
                continue
            total = counts.total_tokens
            assert total <= min(budget, self.kept[request_id]), f"{request_id}: {total} of {budget}"
            if request_id not in aborted:
                shown = total + counts.surplus_tokens
                assert self.shown[request_id] == shown, f"{request_id}: {self.shown[request_id]}, not {shown}"
        return len(self.ended)
