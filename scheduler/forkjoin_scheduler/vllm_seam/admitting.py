"""Which waiting requests may start: see ``policy/admission.py`` and ``policy/door.py``.

Threads and what has run always may.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from vllm.v1.core.sched.interface import PauseState
from vllm.v1.request import Request, RequestStatus

from forkjoin_scheduler.policy.admission import Admission, Need, Room
from forkjoin_scheduler.policy.door import Door
from forkjoin_scheduler.vllm_seam import kv
from forkjoin_scheduler.vllm_seam.core import CAPPED, STOPPED
from forkjoin_scheduler.vllm_seam.forking import Forking
from forkjoin_scheduler.vllm_seam.sharing import SharedQueue, cost
from forkjoin_scheduler.vllm_seam.wish import noted


@dataclass(frozen=True)
class Admitted:
    """A request that may fork and was let in, and what it needed then."""

    request: Request
    need: Need


class Admitting(Forking):
    """Keeps requests that may fork waiting until there is room for what they will need."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self._admission = Admission()
        #: By the id of their requests, until they end.
        self._admitted: dict[str, Admitted] = {}
        #: Let in in this step.
        self._let_in: list[Admitted] = []
        self._door = Door()
        #: Threads that the policy of ``pacing.py`` does not let start in this step.
        self._held_back: set[str] = set()
        #: What has not begun, each API key's in turn.
        self._shared: SharedQueue | None = None
        if self._spoken is not None:
            self.waiting = self._shared = SharedQueue(self.policy, self._expected_cost)

    # ---- vLLM's hooks ----------------------------------------------------------------------

    def _handle_blocked_waiting_request(self, request: Request) -> bool:
        """Whether vLLM may start ``request`` in this step."""
        if request.request_id in self._held_back or not super()._handle_blocked_waiting_request(request):
            return False
        try:
            return self._may_start(request)
        except Exception as error:
            self._contain("admit", error, request)
        return False

    def _may_start(self, request: Request) -> bool:
        """Whether there is room for what ``request`` will need."""
        if self._spoken is None or self._settings.admission == "greedy" or self._holds_kv_blocks(request):
            return True
        lets_in = self._door.lets_in(partial(self._is_admitted, request), may_fork=noted(request) is not None)
        if self._door.is_shut:
            self._stop_looking()
        return lets_in

    def _free_request(
        self, request: Request, delay_free_blocks: bool = False
    ) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
        try:
            self._learn_from(request)
        except Exception as error:
            self._contain("learn", error, request)
        return super()._free_request(request, delay_free_blocks)

    def _learn_from(self, request: Request) -> None:
        """``request`` has ended: if by itself, what it came to is to be expected of others."""
        if self._shared is not None:
            num_generated, _, _ = self._written(request)
            self._shared.ended(request, cost(max(request.num_tokens - num_generated, 0), num_generated))
        admitted = self._admitted.pop(request.request_id, None)
        if admitted is not None and request.status in (STOPPED, CAPPED):
            self._admission.learn(self._come_to(admitted))

    # ----------------------------------------------------------------------------------------

    def _expected_cost(self, request: Request) -> float:
        return cost(request.num_prompt_tokens, min(self._admission.tokens.mean, request.max_tokens))

    def _is_admitted(self, request: Request) -> bool:
        wish = noted(request)
        num_answers = (wish.options.best_of if wish is not None else None) or 1
        need = Need(
            prompt_blocks=kv.num_new_blocks(self.kv_cache_manager, request),
            max_tokens=request.max_tokens * num_answers,
        )
        if self._admission.is_due and not self._fits(need):
            return False
        self._let_in.append(Admitted(request, need))
        return True

    def _take_in_started(self) -> None:
        """What was let in has begun, unless there were no blocks for it after all: that is asked again."""
        let_in, self._let_in = self._let_in, []
        for admitted in let_in:
            if admitted.request.status == RequestStatus.RUNNING:
                self._admitted[admitted.request.request_id] = admitted

    def _fits(self, need: Need) -> bool:
        manager = self.kv_cache_manager
        room = Room(kv.num_free_blocks(manager), kv.block_size(manager), self._num_slots)
        running = map(self._come_to, (*self._admitted.values(), *self._let_in))
        return self._admission.admits(need, running, room)

    def _come_to(self, admitted: Admitted) -> Need:
        """What it needed at its start, and what it has come to since."""
        generated, widest, critical = self._written(admitted.request)
        return replace(admitted.need, generated=generated, width=widest, critical=critical)

    def _written(self, request: Request) -> tuple[int, int, int]:
        """Tokens generated, the widest fork, tokens of the critical path."""
        if live := self._live.get(request.request_id):
            family = live.family
            return family.num_generated, family.widest, family.num_critical
        return request.num_output_tokens, 0, request.num_output_tokens

    def _stop_looking(self) -> None:
        """Let vLLM look at no more new requests in this step: as if it were paused for them."""
        self._pause_state = max(self._pause_state, PauseState.PAUSED_NEW)
