"""Which waiting requests may start: see ``policy/admission.py`` and ``policy/door.py``.

Threads and what has run always may.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from vllm.v1.core.sched.interface import PauseState
from vllm.v1.request import Request, RequestStatus

from forkjoin_scheduler.family import Branch
from forkjoin_scheduler.policy.admission import Admission, Need, Room
from forkjoin_scheduler.policy.door import Door
from forkjoin_scheduler.policy.waves import first_wave
from forkjoin_scheduler.vllm_seam import kv
from forkjoin_scheduler.vllm_seam.core import CAPPED, STOPPED
from forkjoin_scheduler.vllm_seam.hearing import Hearing
from forkjoin_scheduler.vllm_seam.live import LiveFamily, max_tokens_of
from forkjoin_scheduler.vllm_seam.sharing import SharedQueue, cost
from forkjoin_scheduler.vllm_seam.wish import noted

#: What was refused is asked for again in so many steps, or when something has ended.
ASKED_EVERY = 4
#: Tokens that a request may write before an abort reaches it.
WRITTEN_BEHIND_STOP = 64


@dataclass
class Admitted:
    """A request that may fork and was let in, and what it needed then."""

    request: Request
    need: Need
    #: KV blocks that it was expected to hold when it ends.
    expected_blocks: float
    #: The most that it was seen to hold.
    peak_blocks: int = 0


class Admitting(Hearing):
    """Keeps requests that may fork waiting until there is room for what they will need."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self._admission = Admission()
        #: By the id of their requests, until they end.
        self._admitted: dict[str, Admitted] = {}
        #: Let in in this step.
        self._let_in: list[Admitted] = []
        #: Of requests that ended by themselves: the most blocks that each held, over those expected of it.
        self._peak_ratios: list[float] = []
        self._door = Door()
        #: The step in which one that was refused is asked for again.
        self._asked_next = 0
        #: Threads that the policy of ``pacing.py`` does not let run in this step.
        self._held_back: set[str] = set()
        #: What has not begun, each API key's in turn.
        self._shared: SharedQueue | None = None
        if self._spoken is not None:
            self.waiting = self._shared = SharedQueue(
                self.policy, lambda request: self._answer("cost", request, self._expected_cost, 1.0)
            )

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
            self._ended(request)
        except Exception as error:
            self._contain("learn", error, request)
        return super()._free_request(request, delay_free_blocks)

    # ----------------------------------------------------------------------------------------

    def _expected_cost(self, request: Request) -> float:
        return cost(request.num_prompt_tokens, min(self._admission.tokens.mean, request.max_tokens))

    def _is_admitted(self, request: Request) -> bool:
        if self.current_step < self._asked_next:
            return False
        need = self._new_need(request)
        if (self._admission.is_due or need.asked) and not self._fits(need):
            self._asked_next = self.current_step + ASKED_EVERY
            return False
        growth = self._admission.future(need, kv.block_size(self.kv_cache_manager)).growth
        self._let_in.append(Admitted(request, need, need.blocks + growth))
        return True

    def _new_need(self, request: Request) -> Need:
        blocks = kv.num_new_blocks(self.kv_cache_manager, request)
        ahead = (self.num_spec_tokens + self.num_lookahead_tokens) / kv.block_size(self.kv_cache_manager)
        wish = noted(request)
        if wish is None:
            return Need(blocks=blocks, max_tokens=request.max_tokens, ahead=ahead)
        asked = wish.options.width or 0
        confidence = wish.options.confidence
        abreast = 0 if confidence is None else first_wave(asked, confidence)
        return Need(
            blocks=blocks,
            max_tokens=max_tokens_of(request, wish),
            asked=asked,
            abreast=abreast,
            ahead=ahead,
        )

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
        blocks, lost = self._holds(admitted.request)
        admitted.peak_blocks = max(admitted.peak_blocks, blocks)
        return replace(
            admitted.need, generated=generated, width=widest, critical=critical, blocks=blocks, lost=lost
        )

    def _holds(self, root: Request) -> tuple[int, float]:
        """Blocks that return to the pool with all of a family, and what it will take again of lost ones."""
        manager = self.kv_cache_manager
        live = self._live.get(root.request_id)
        if live is None:
            requests, own, held = [root], [root.num_tokens], []
        else:
            branches = [b for b in live.family.root.subtree() if b.request_id in self.requests]
            requests = [self.requests[b.request_id] for b in branches]
            own = [r.num_tokens - b.fork_len for r, b in zip(requests, branches, strict=True)]
            requests += [job.request for job in live.jobs if job.request is not None]
            held = [*live.held.values(), *(h for job in live.jobs for h in job.loose)]
        ids = [request.request_id for request in requests]
        held += [h for i in ids if i in self._to_stitch for h in self._to_stitch[i].rest]
        lost = sum(n for n, r in zip(own, requests, strict=False) if not kv.has_blocks(manager, r))
        return kv.num_freed_with(manager, ids, held), lost / kv.block_size(manager)

    # ---- ends ------------------------------------------------------------------------------

    def _ended(self, request: Request) -> None:
        """``request`` has ended; its family goes on where threads are spliced in and some still run."""
        if entry := self._threads.get(request.request_id):
            self._note_peak(*entry)
        if self._shared is not None:
            num_generated, _, _ = self._written(request)
            self._shared.ended(request, cost(max(request.num_tokens - num_generated, 0), num_generated))
        live = self._live.get(request.request_id)
        goes_on = live is not None and (live.family.has_live_threads or live.num_planned > 0)
        if live is None or not live.takes_over or not goes_on:
            self._leave(request, request.status in (STOPPED, CAPPED) or self._has_stop_string(request))

    def _note_peak(self, live: LiveFamily, thread: Branch) -> None:
        """See what a family holds before the first thread of a fork ends: after it, blocks return."""
        admitted = self._admitted.get(live.family.request_id)
        assert thread.parent is not None
        if admitted is not None and all(t.is_live for t in thread.parent.forks[thread.fork_number]):
            self._come_to(admitted)

    def _leave(self, request: Request, by_itself: bool) -> None:
        """The family of ``request`` is done: if by itself, what it came to is to be expected of others."""
        admitted = self._admitted.get(request.request_id)
        if admitted is None:
            return
        if by_itself:
            self._admission.learn(self._come_to(admitted))
            self._peak_ratios.append(admitted.peak_blocks / max(admitted.expected_blocks, 1))
        del self._admitted[request.request_id]
        self._asked_next = 0

    def _has_stop_string(self, request: Request) -> bool:
        """Whether ``request``, or a thread of it, has written one of its stop strings.

        The front end finds these, and aborts the request: to the engine it seems to end as if its
        client had gone. It may have written on for some steps.
        """
        params = request.sampling_params
        stops = (params.stop or ()) if params is not None else ()
        if not stops:
            return False
        num_last = max(map(len, stops)) + WRITTEN_BEHIND_STOP * (1 + self.num_spec_tokens)
        live = self._live.get(request.request_id)
        texts = [request.output_token_ids[-num_last:]]
        texts += [t.token_ids[-num_last:] for t in live.family.threads] if live is not None else []
        return any(stop in text for text in map(self._tokenizer.decode, texts) for stop in stops)

    def _written(self, request: Request) -> tuple[int, int, int]:
        """Tokens generated, the widest fork, tokens of the critical path."""
        if live := self._live.get(request.request_id):
            family = live.family
            return family.num_generated, family.widest, family.num_critical
        return request.num_output_tokens, 0, request.num_output_tokens

    def _stop_looking(self) -> None:
        """Let vLLM look at no more new requests in this step: as if it were paused for them."""
        self._pause_state = max(self._pause_state, PauseState.PAUSED_NEW)
