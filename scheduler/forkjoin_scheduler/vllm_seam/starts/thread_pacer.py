"""Which threads run in a step: see ``policy/threads.py``. Those left out wait, or sit the step out."""

from __future__ import annotations

import time
from collections import deque

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.request import Request, RequestStatus

from forkjoin_scheduler.excerpt import excerpt
from forkjoin_scheduler.policy.admission import Expectation
from forkjoin_scheduler.policy.deadlines import Deadlines
from forkjoin_scheduler.policy.own import WrongAnswer
from forkjoin_scheduler.policy.step_cost import Load, StepCost
from forkjoin_scheduler.policy.threads import (
    AIM,
    Capped,
    Eager,
    Slack,
    StepFacts,
    ThreadFacts,
    ThreadPolicy,
    within,
)
from forkjoin_scheduler.vllm_seam.cache.kv_jobs import KVJobs
from forkjoin_scheduler.vllm_seam.core import Core
from forkjoin_scheduler.vllm_seam.fence import Fence, root_id
from forkjoin_scheduler.vllm_seam.starts.admission_gate import AdmissionGate
from forkjoin_scheduler.vllm_seam.starts.waiting import Waiters, could_run


class ThreadPacer:
    """Asks the policy before each step, and learns from each what a step takes. Owns what it has learnt."""

    def __init__(self, core: Core, fence: Fence, jobs: KVJobs, gate: AdmissionGate, waits: Waiters) -> None:
        self._core, self._fence, self._jobs, self._gate, self._waits = core, fence, jobs, gate, waits
        self.cost = StepCost()
        self.deadlines: Deadlines | None = None
        self.policy: ThreadPolicy = self.chosen_policy()
        #: Steps whose end is awaited: what they compute, and when they were scheduled.
        self._in_flight: deque[tuple[Load, float]] = deque()
        self._last_end = 0.0
        #: What a sequence gets in a step: more than one token where drafts are right.
        self._tokens_a_step = Expectation(1.0, weight=0.01)
        #: Whether the last step computed nothing, and none before it is still computed.
        self._is_stalled = False

    def chosen_policy(self) -> ThreadPolicy:
        """The policy that the settings name."""
        settings = self._core.settings
        own: ThreadPolicy | None = settings.policy("thread_policy")
        if own is not None:
            return own
        if settings.max_threads_running is not None:
            return Capped(settings.max_threads_running)
        if settings.slo_itl_ms is not None:
            target = AIM * settings.slo_itl_ms / 1e3
            self.deadlines = Deadlines(target)
            return Slack(self.cost, target)
        return Eager()

    # ---- before a step ---------------------------------------------------------------------

    def choose(self) -> None:
        """Let the policy choose the threads of the next step.

        If the step before computed nothing, all run: those that were chosen may lack KV blocks that
        those that sat out hold. Threads that are to be admitted again are not chosen from: in the place of
        those that can run they might wait for long. Only caps hold them back, for they have to ask for room.
        """
        if self._waits.held_back:
            self._waits.let_all_run()
        if self._is_stalled:
            return
        caps = self._caps()
        if isinstance(self.policy, Eager) and not caps and not self._could_be_kept():
            return
        requests = [r for r in map(self._core.requests.__getitem__, self._core.threads) if could_run(r)]
        lost = [self._thread_facts(r) for r in requests if self._gate.asks_again(r)]
        of_lost = {thread.key for thread in lost}
        threads = [self._thread_facts(r) for r in requests if r.request_id not in of_lost]
        chosen = of_lost | (self._choose_of(threads) if threads else set())
        threads += lost
        if caps:
            chosen = within(caps, threads, chosen)
        for thread in threads:
            if thread.key not in chosen:
                self._waits.hold_back(self._core.requests[thread.key])

    def _choose_of(self, threads: list[ThreadFacts]) -> set[str]:
        """Those of ``threads`` that the policy lets run, beside all else that the step will compute."""
        return self._ask(
            StepFacts(
                threads,
                self._load_of_others(),
                self._slack(),
                self._core.num_slots,
                self._num_others_waiting(),
                self._tokens_a_step.mean,
            )
        )

    def _ask(self, facts: StepFacts) -> set[str]:
        """The threads that the policy chooses. One that raises, or names none, is asked no more: all run."""
        try:
            return self._checked(set(self.policy.choose(facts)), facts)
        except (Exception, SystemExit) as error:  # the policy may be anybody's
            self._fence.blame("thread_policy", "pace", error)
            self.policy = Eager()
        return self.policy.choose(facts)

    def _checked(self, chosen: set[str], facts: StepFacts) -> set[str]:
        """``chosen``, if all that it names are threads. Raises WrongAnswer if not."""
        for key in chosen.difference(thread.key for thread in facts.threads):
            if not self._may_have_been_asked_of(key):
                raise WrongAnswer(f"expected keys of the threads it was asked of, got {excerpt(key)}")
        return chosen

    def _may_have_been_asked_of(self, key: object) -> bool:
        """Whether ``key`` is a thread's, if perhaps of one that has ended: a policy may still name that."""
        root = root_id(key)
        if not isinstance(key, str) or root is None or root == key:
            return False
        live = self._core.live.get(root)
        return live is None or any(thread.request_id == key for thread in live.family.threads)

    def _caps(self) -> dict[str, int]:
        """How many threads its request, or the policy, lets run at a time, by family, where it has more."""
        of_all = self.policy.per_family if isinstance(self.policy, Capped) else None
        caps = {}
        for live in self._core.live.values():
            both = (of_all, live.fj_params.options.max_threads_running)
            cap = min((n for n in both if n is not None), default=None)
            if cap is not None and sum(thread.is_live for thread in live.family.threads) > cap:
                caps[live.family.request_id] = cap
        return caps

    def stop(self) -> None:
        """The policy has failed: from the next step on all threads run.

        In this one, those that sit out still count for what may start beside them.
        """
        self.policy = Eager()

    def _could_be_kept(self) -> bool:
        """Whether more want a slot than there are, a thread among them: one that has a slot keeps it.

        Under load requests always wait, so without the second question every step of a loaded
        server would ask the policy about every thread, to no effect.
        """
        is_crowded = len(self._core.scheduler.running) + self._waits.num() > self._core.num_slots
        return is_crowded and self._waits.num_of(self._core.threads) > 0

    def _thread_facts(self, request: Request) -> ThreadFacts:
        live, thread = self._core.threads[request.request_id]
        has_slot = request.status == RequestStatus.RUNNING
        return ThreadFacts(
            request.request_id,
            live.family.request_id,
            thread.num_generated,
            request.num_computed_tokens if has_slot else request.num_tokens,
            has_slot,
            1 + self._core.scheduler.num_spec_tokens,
            self._core.turn(live.request),
        )

    def _load_of_others(self) -> Load:
        others = [r for r in self._core.scheduler.running if r.request_id not in self._core.threads]
        to_compute = sum(
            max(r.num_tokens_with_spec + r.num_output_placeholders - r.num_computed_tokens, 1) for r in others
        )
        return Load(
            len(others),
            min(to_compute, self._core.scheduler.max_num_scheduled_tokens),
            sum(r.num_computed_tokens for r in others),
        )

    def _num_others_waiting(self) -> int:
        """Requests that wait for a slot and could start, as far as is known."""
        return self._gate.step_admission.num_could_start(self._waits.count()[1])

    def _slack(self) -> float | None:
        """Seconds until the first stream is late. Families in a fork are none: see ``StepFacts.slack``."""
        if self.deadlines is None:
            return None
        forked = {live.family.request_id for live, _ in self._core.threads.values()}
        others = [
            r
            for r in self._core.scheduler.running
            if r.request_id not in self._core.threads and r.request_id not in self._jobs.prefills
        ]
        streams = {r.request_id: r for r in (*others, *(a.request for a in self._gate.admitted.values()))}
        written = {i: self._gate.written(r)[2] for i, r in streams.items() if i not in forked}
        return self.deadlines.slack(written, time.monotonic())

    # ---- what steps take -------------------------------------------------------------------

    def step_scheduled(self, output: SchedulerOutput) -> None:
        """Note a step that has been scheduled."""
        # What is still computed, where scheduling is async, may make room when it ends.
        self._is_stalled = not output.total_num_scheduled_tokens and not any(
            r.num_output_placeholders for r in self._core.scheduler.running
        )
        if self.deadlines is None or not output.total_num_scheduled_tokens:
            return
        num_tokens = output.num_scheduled_tokens
        context = sum(self._core.requests[i].num_computed_tokens for i in num_tokens)
        load = Load(len(num_tokens), output.total_num_scheduled_tokens, context)
        self._in_flight.append((load, time.monotonic()))

    def step_ended(self, output: SchedulerOutput, sampled: list[list[int]]) -> None:
        """See what a step took: from its scheduling, or from the end of the one before it if that came later.

        ``sampled``: what it brought each of its sequences; nothing, where a prompt isn't computed whole.
        """
        if not output.total_num_scheduled_tokens or not self._in_flight:
            return
        (load, scheduled), now = self._in_flight.popleft(), time.monotonic()
        self.cost.observe(load, now - max(scheduled, self._last_end))
        self._last_end = now
        if self._core.scheduler.num_spec_tokens and (runs := [len(run) for run in sampled if run]):
            self._tokens_a_step.see(sum(runs) / len(runs))
