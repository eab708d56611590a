"""Which waiting requests may start: see ``policy/admission.py`` and ``policy/step_admission.py``.

Threads and what has run always may, but for a family that has lost blocks: that asks again before it takes
them again. Until there is room for it, what it has lost would be taken from others, or lost once more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

from vllm.v1.request import Request, RequestStatus

from forkjoin_scheduler.families.family import Branch
from forkjoin_scheduler.policy.admission import Admission, AdmissionPolicy, Need, Room, readmission
from forkjoin_scheduler.policy.own import WrongAnswer
from forkjoin_scheduler.policy.step_admission import StepAdmission
from forkjoin_scheduler.policy.waves import first_wave
from forkjoin_scheduler.vllm_seam.cache import kv
from forkjoin_scheduler.vllm_seam.cache.placing import Placing
from forkjoin_scheduler.vllm_seam.core import CAPPED, STOPPED, Core
from forkjoin_scheduler.vllm_seam.fence import Fence, root_id
from forkjoin_scheduler.vllm_seam.live import LiveFamily, max_tokens_of
from forkjoin_scheduler.vllm_seam.starts import connector
from forkjoin_scheduler.vllm_seam.starts.sharing import SharedQueue, cost

#: What a request waits as that has never run.
_NEVER_RAN = (RequestStatus.WAITING, RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR)
#: What was refused is asked for again in so many steps, or when something has ended.
ASKED_EVERY = 4
#: Tokens that a request may write before an abort reaches it.
WRITTEN_BEHIND_STOP = 64


@dataclass
class Admitted:
    """A request that may fork and was admitted, and what it needed then."""

    request: Request
    need: Need
    #: KV blocks that it was expected to hold when it ends.
    expected_blocks: float
    #: The most that it was seen to hold.
    peak_blocks: int = 0


class AdmissionGate:
    """Keeps requests that may fork waiting until there is room for what they will need.

    Owns what is expected of requests, who was admitted, and the queue of those that have not begun.
    """

    def __init__(self, core: Core, fence: Fence, placing: Placing) -> None:
        self._core, self._fence, self._placing = core, fence, placing
        #: What requests have used, and the policy where the user brings none.
        self.admission = Admission()
        self._own: AdmissionPolicy | None = core.settings.policy("admission_policy")
        #: By the id of their requests, until they end.
        self.admitted: dict[str, Admitted] = {}
        #: Those of them that have lost blocks, and have not been admitted again.
        self.lost_blocks: set[str] = set()
        #: Admitted in this step.
        self.let_in: list[Admitted] = []
        #: Of requests that ended by themselves: the most blocks that each held, over those expected of it;
        #: until they hear of them (``load_report.py``).
        self.peak_ratios: list[float] = []
        self.step_admission = StepAdmission()
        #: The step in which one that was refused is asked for again.
        self._asked_next = 0
        #: What has not begun, each API key's in turn.
        self.queue = SharedQueue(
            core.scheduler.policy, lambda request: fence.answer("cost", request, self._expected_cost, 1.0)
        )

    # ---- starts ----------------------------------------------------------------------------

    def try_admit(self, request: Request) -> bool:
        """Whether a new ``request`` may start in this step: there is room for what it will need."""
        if self._core.settings.admission == "greedy":
            return True
        return self.step_admission.try_admit(
            partial(self._is_admitted, request), may_fork=request.request_id in self._core.fj_params
        )

    def _expected_cost(self, request: Request) -> float:
        num_generated = min(self.admission.tokens.mean, request.max_tokens)
        return cost(request.num_prompt_tokens + self._num_given(request), num_generated)

    def _num_given(self, request: Request) -> int:
        """Tokens of an earlier answer that ``request`` goes on from: they are prefilled, too."""
        fj_params = self._core.fj_params.get(request.request_id)
        given = None if fj_params is None else fj_params.options.given
        return 0 if given is None else given.num_tokens

    def _is_admitted(self, request: Request) -> bool:
        if self._core.scheduler.current_step < self._asked_next:
            return False
        need = self.new_need(request)
        if not self._fits(need, [*self.admitted.values(), *self.let_in], self._room):
            self._asked_next = self._core.scheduler.current_step + ASKED_EVERY
            return False
        growth = self.admission.future(need, kv.block_size(self._core.kv_cache_manager)).growth
        self.let_in.append(Admitted(request, need, need.blocks + growth))
        return True

    def new_need(self, request: Request) -> Need:
        """What ``request``, which has not begun, will need as far as it says."""
        scheduler, manager = self._core.scheduler, self._core.kv_cache_manager
        blocks = kv.num_new_blocks(manager, request, self._core.leases.holders)
        ahead = (scheduler.num_spec_tokens + scheduler.num_lookahead_tokens) / kv.block_size(manager)
        fj_params = self._core.fj_params.get(request.request_id)
        if fj_params is None:
            return Need(blocks=blocks, max_tokens=request.max_tokens, ahead=ahead)
        asked, num_given = fj_params.options.width or 0, self._num_given(request)
        confidence = fj_params.options.confidence
        abreast = 0 if confidence is None else first_wave(asked, confidence)
        return Need(
            generated=num_given,
            blocks=blocks - (-num_given // kv.block_size(manager)),
            max_tokens=max_tokens_of(fj_params),
            asked=asked,
            abreast=abreast,
            ahead=ahead,
            given=num_given,
        )

    def take_in_started(self) -> None:
        """What was admitted has begun, unless there were no blocks for it after all: that is asked again."""
        let_in, self.let_in = self.let_in, []
        for admitted in let_in:
            if admitted.request.status == RequestStatus.RUNNING or connector.is_loading(admitted.request):
                self.admitted[admitted.request.request_id] = admitted

    def lost(self, request: Request) -> None:
        """``request``, or its family, has lost blocks."""
        request_id = root_id(request.request_id)
        if request_id in self.admitted and self._core.settings.admission != "greedy":
            self.lost_blocks.add(request_id)

    def may_go_on(self, request: Request) -> bool:
        """Whether ``request``, which has begun, may run: what its family has lost has to fit."""
        if not self.asks_again(request):
            return True
        request_id = root_id(request.request_id)
        assert request_id is not None
        if not self.step_admission.try_readmit(partial(self._is_admitted_again, self.admitted[request_id])):
            return False
        self.lost_blocks.discard(request_id)
        return True

    def asks_again(self, request: Request) -> bool:
        """Whether ``request``, which has begun, is to be admitted again before it runs."""
        return (
            bool(self.lost_blocks)
            and root_id(request.request_id) in self.lost_blocks
            and self._has_lost_kv(request)
        )

    def forget_if_regained(self, request_id: str) -> None:
        """A family that lacks nothing any more need not be admitted again.

        What it had lost may have ended meanwhile, or its join may have done without it.
        """
        live = self._core.live.get(request_id)
        ids = [request_id]
        if live is not None:
            ids = [branch.request_id for branch in live.family.root.subtree() if branch.is_live]
            ids += [job.request.request_id for job in live.jobs if job.request is not None]
        if not any(self._has_lost_kv(self._core.requests[i]) for i in ids if i in self._core.requests):
            self.lost_blocks.discard(request_id)

    def _has_lost_kv(self, request: Request) -> bool:
        """Whether ``request``, which has begun, has no KV. A new thread has its parent's."""
        if request.num_computed_tokens:
            return False
        entry = self._core.threads.get(request.request_id)
        if entry is None or request.status not in _NEVER_RAN or entry[1].num_generated:
            return True
        _, thread = entry
        assert thread.parent is not None
        parent = self._core.requests.get(thread.parent.request_id)
        return thread.fork_len > 0 and (parent is None or not parent.num_computed_tokens)

    def _is_admitted_again(self, family: Admitted) -> bool:
        """Whether there is room for all that ``family`` will need, beside those that have lost nothing."""
        if not self._core.scheduler.running:
            return True
        if self._core.scheduler.current_step < self._asked_next:
            return False
        beside = [admitted for i, admitted in self.admitted.items() if i not in self.lost_blocks]
        new, room = readmission(self.come_to(family), self._room)
        if not self._fits(new, [*beside, *self.let_in], room):
            self._asked_next = self._core.scheduler.current_step + ASKED_EVERY
            return False
        return True

    @property
    def _room(self) -> Room:
        block_size = kv.block_size(self._core.kv_cache_manager)
        return Room(self._core.num_free_blocks(), block_size, self._core.num_slots)

    def _fits(self, need: Need, beside: Sequence[Admitted], room: Room) -> bool:
        """Whether one more that needs ``need`` may start. One that would run alone always may."""
        if not beside:
            self.admission.expected = self.admission.expected_tokens((), room)
        if not beside or (self._own is None and not self.admission.is_due(need)):
            return True  # without counting what the others use
        running = [self.come_to(admitted) for admitted in beside]
        if self._own is not None:
            with self._asked_no_more_if_it_raises():
                admits: object = self._own.admits(need, [*running], room)  # which it may change
                if admits is None:
                    raise WrongAnswer("expected True or False, got None: does each path of it return?")
                return bool(admits)  # which may raise too
        return self.admission.admits(need, running, room)

    @contextmanager
    def _asked_no_more_if_it_raises(self) -> Iterator[None]:
        """The user's own policy, which may be anybody's, is asked inside."""
        try:
            yield
        except (Exception, SystemExit) as error:
            self._fence.blame("admission_policy", "admit", error)
            self._own = None

    def come_to(self, admitted: Admitted) -> Need:
        """What it needed at its start, and what it has used since."""
        generated, widest, critical = self.written(admitted.request)
        live = self._core.live.get(admitted.request.request_id)
        blocks, lost = self.holds(admitted.request)
        admitted.peak_blocks = max(admitted.peak_blocks, blocks)
        return replace(
            admitted.need,
            generated=generated,
            width=widest,
            critical=critical,
            blocks=blocks,
            lost=lost,
            ended_threads=0 if live is None else live.family.num_ended_threads,
        )

    def holds(self, root: Request) -> tuple[int, float]:
        """Blocks that return to the pool with all of a family, and what it will take again of lost ones."""
        manager = self._core.kv_cache_manager
        live = self._core.live.get(root.request_id)
        if live is None:
            requests, own, held = [root], [root.num_tokens], []
        else:
            branches = [b for b in live.family.root.subtree() if b.request_id in self._core.requests]
            requests = [self._core.requests[b.request_id] for b in branches]
            own = [r.num_tokens - b.fork_len for r, b in zip(requests, branches, strict=True)]
            requests += [job.request for job in live.jobs if job.request is not None]
            held = [*live.held.values(), *(h for job in live.jobs for h in job.unclaimed_blocks)]
        ids = [request.request_id for request in requests]
        held += [h for i in ids if i in self._placing.to_stitch for h in self._placing.to_stitch[i].rest]
        lost = sum(n for n, r in zip(own, requests, strict=False) if not kv.has_blocks(manager, r))
        return kv.num_freed_with(manager, ids, held), lost / kv.block_size(manager)

    # ---- ends ------------------------------------------------------------------------------

    def ended(self, request: Request) -> None:
        """``request`` has ended; its family goes on where threads are spliced in and some still run."""
        if entry := self._core.threads.get(request.request_id):
            self._note_peak(*entry)
        num_generated, _, _ = self.written(request)
        num_generated = max(num_generated - self._num_given(request), 0)
        self.queue.ended(request, cost(max(request.num_tokens - num_generated, 0), num_generated))
        live = self._core.live.get(request.request_id)
        goes_on = live is not None and (live.family.has_live_threads or live.num_planned > 0)
        if live is None or not live.buffers_parent_output or not goes_on:
            self.leave(request, request.status in (STOPPED, CAPPED) or self.has_stop_string(request))

    def _note_peak(self, live: LiveFamily, thread: Branch) -> None:
        """See what a family holds before the first thread of a fork ends: after it, blocks return."""
        admitted = self.admitted.get(live.family.request_id)
        assert thread.parent is not None
        if admitted is not None and all(t.is_live for t in thread.parent.forks[thread.fork_number]):
            self.come_to(admitted)

    def leave(self, request: Request, by_itself: bool) -> None:
        """The family of ``request`` is done: if by itself, what it used is to be expected of others."""
        admitted = self.admitted.get(request.request_id)
        if admitted is None:
            return
        if by_itself and not self._num_given(request):  # what went on from a tree is part of an answer only
            need = self.come_to(admitted)
            self.admission.learn(need)
            if self._own is not None:
                with self._asked_no_more_if_it_raises():
                    self._own.learn(need)
            self.peak_ratios.append(admitted.peak_blocks / max(admitted.expected_blocks, 1))
        del self.admitted[request.request_id]
        self.lost_blocks.discard(request.request_id)
        self._asked_next = 0

    def has_stop_string(self, request: Request) -> bool:
        """Whether ``request``, or a thread of it, has written one of its stop strings.

        The front end finds these, and aborts the request: to the engine it seems to end as if its
        client had gone. It may have written on for some steps.
        """
        params = request.sampling_params
        stops = (params.stop or ()) if params is not None else ()
        if not stops:
            return False
        num_last = max(map(len, stops)) + WRITTEN_BEHIND_STOP * (1 + self._core.scheduler.num_spec_tokens)
        live = self._core.live.get(request.request_id)
        texts = [request.output_token_ids[-num_last:]]
        texts += [t.token_ids[-num_last:] for t in live.family.threads] if live is not None else []
        return any(stop in text for text in map(self._core.tokenizer.decode, texts) for stop in stops)

    def written(self, request: Request) -> tuple[int, int, int]:
        """Tokens generated, the widest fork, tokens of the critical path."""
        if live := self._core.live.get(request.request_id):
            family = live.family
            return family.num_generated, family.widest, family.num_critical
        return request.num_output_tokens, 0, request.num_output_tokens
