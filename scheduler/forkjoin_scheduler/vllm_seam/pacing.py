"""Which threads run in a step: see ``policy/threads.py``. Those left out wait, or sit the step out."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.request import Request, RequestStatus

from forkjoin_scheduler.policy.admission import Expectation
from forkjoin_scheduler.policy.deadlines import Deadlines
from forkjoin_scheduler.policy.step_cost import Load, StepCost
from forkjoin_scheduler.policy.threads import (
    Capped,
    Eager,
    Slack,
    StepFacts,
    ThreadFacts,
    ThreadPolicy,
    within,
)
from forkjoin_scheduler.settings import own_thread_policy
from forkjoin_scheduler.vllm_seam.admitting import Admitting


class Pacing(Admitting):
    """Asks the policy before each step, and learns from each what a step takes."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self._cost = StepCost()
        self._deadlines: Deadlines | None = None
        self._pace: ThreadPolicy = self._chosen_policy()
        #: Steps whose end is awaited: what they compute, and when they were scheduled.
        self._in_flight: deque[tuple[Load, float]] = deque()
        self._last_end = 0.0
        #: What a sequence gets in a step: more than one token where drafts are right.
        self._tokens_a_step = Expectation(1.0, weight=0.01)
        #: Whether the last step computed nothing, and none before it is still computed.
        self._is_stalled = False

    def _chosen_policy(self) -> ThreadPolicy:
        settings = self._settings
        if settings.thread_policy is not None:
            return own_thread_policy(settings.thread_policy)()
        if settings.max_threads_running is not None:
            return Capped(settings.max_threads_running)
        if settings.slo_itl_ms is not None:
            target = settings.slo_itl_ms / 1e3
            self._deadlines = Deadlines(target)
            return Slack(self._cost, target)
        return Eager()

    # ---- before a step ---------------------------------------------------------------------

    def _pace_threads(self) -> None:
        """Let the policy choose the threads of the next step.

        If the step before computed nothing, all run: those that were chosen may lack KV blocks that
        those that sat out hold.
        """
        self._held_back = set()
        if self._is_stalled:
            return
        caps = self._caps()
        if isinstance(self._pace, Eager) and not caps and not self._could_be_kept():
            return
        threads = [
            self._thread_facts(r) for r in map(self.requests.__getitem__, self._threads) if _could_run(r)
        ]
        chosen = self._pace.choose(
            StepFacts(
                threads,
                self._load_of_others(),
                self._slack(),
                self._num_slots,
                self._num_others_waiting(),
                self._tokens_a_step.mean,
            )
        )
        if caps:
            chosen = within(caps, threads, chosen)
        for thread in threads:
            if thread.key not in chosen:
                self._sit_out(self.requests[thread.key])

    def _caps(self) -> dict[str, int]:
        """How many threads each request lets run at a time, by family, where it has more than it lets."""
        return {
            live.family.request_id: cap
            for live in self._live.values()
            if (cap := live.wish.options.max_threads_running) is not None
            and sum(thread.is_live for thread in live.family.threads) > cap
        }

    def _stop_pacing(self) -> None:
        """The policy has failed: from here on all threads run."""
        self._pace, self._held_back = Eager(), set()

    def _could_be_kept(self) -> bool:
        """Whether more want a slot than there are, a thread among them: one that has a slot keeps it.

        Under load requests always wait, so without the second question every step of a loaded
        server would ask the policy about every thread, to no effect.
        """
        is_crowded = len(self.running) + self._num_waiting() > self._num_slots
        return is_crowded and self._num_that_wait(self._threads) > 0

    def _num_waiting(self) -> int:
        """What waits to run; parked branches do not."""
        return len(self.waiting) + len(self.kv_holding_waiting) - self.num_waiting_for_streaming_input

    def _count_waiting(self) -> tuple[int, int]:
        """How many threads and how many requests wait to run; fills are neither."""
        num_threads = self._num_that_wait(self._threads)
        return num_threads, self._num_waiting() - num_threads - self._num_that_wait(self._fills)

    def _num_that_wait(self, request_ids: Iterable[str]) -> int:
        return sum(self.requests[i].status in _WAITS for i in request_ids)

    def _thread_facts(self, request: Request) -> ThreadFacts:
        live, thread = self._threads[request.request_id]
        has_slot = request.status == RequestStatus.RUNNING
        return ThreadFacts(
            request.request_id,
            live.family.request_id,
            thread.num_generated,
            request.num_computed_tokens if has_slot else request.num_tokens,
            has_slot,
            1 + self.num_spec_tokens,
        )

    def _load_of_others(self) -> Load:
        others = [r for r in self.running if r.request_id not in self._threads]
        to_compute = sum(
            max(r.num_tokens_with_spec + r.num_output_placeholders - r.num_computed_tokens, 1) for r in others
        )
        return Load(
            len(others),
            min(to_compute, self.max_num_scheduled_tokens),
            sum(r.num_computed_tokens for r in others),
        )

    def _num_others_waiting(self) -> int:
        """Requests that wait for a slot and could start, as far as is known."""
        return self._door.num_could_start(self._count_waiting()[1])

    def _sit_out(self, request: Request) -> None:
        self._held_back.add(request.request_id)
        if request.status == RequestStatus.RUNNING:
            # vLLM's own means for microbatches: not eligible before the step behind the next.
            request.next_decode_eligible_step = self.current_step + 2

    def _slack(self) -> float | None:
        """Seconds until the first stream is late."""
        if self._deadlines is None:
            return None
        others = [
            r for r in self.running if r.request_id not in self._threads and r.request_id not in self._fills
        ]
        streams = {r.request_id: r for r in (*others, *(a.request for a in self._admitted.values()))}
        written = {i: self._written(r)[2] for i, r in streams.items()}
        return self._deadlines.slack(written, time.monotonic())

    # ---- what steps take -------------------------------------------------------------------

    def _step_scheduled(self, output: SchedulerOutput) -> None:
        # What is still computed, where scheduling is async, may make room when it ends.
        self._is_stalled = not output.total_num_scheduled_tokens and not any(
            r.num_output_placeholders for r in self.running
        )
        if self._deadlines is None or not output.total_num_scheduled_tokens:
            return
        num_tokens = output.num_scheduled_tokens
        context = sum(self.requests[i].num_computed_tokens for i in num_tokens)
        load = Load(len(num_tokens), output.total_num_scheduled_tokens, context)
        self._in_flight.append((load, time.monotonic()))

    def _step_ended(self, output: SchedulerOutput, sampled: list[list[int]]) -> None:
        """From its scheduling, or from the end of the step before it if that came later.

        ``sampled``: what it brought each of its sequences; nothing, where a prompt isn't computed whole.
        """
        if self._deadlines is None or not output.total_num_scheduled_tokens or not self._in_flight:
            return
        (load, scheduled), now = self._in_flight.popleft(), time.monotonic()
        self._cost.observe(load, now - max(scheduled, self._last_end))
        self._last_end = now
        if self.num_spec_tokens and (runs := [len(run) for run in sampled if run]):
            self._tokens_a_step.see(sum(runs) / len(runs))


_WAITS = (
    RequestStatus.WAITING,
    RequestStatus.PREEMPTED,
    RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR,
)


def _could_run(request: Request) -> bool:
    return request.status == RequestStatus.RUNNING or request.status in _WAITS
