"""Which threads run in a step, by the scheduler's own policies (``policy/threads.py``)."""

from __future__ import annotations

from forkjoin_bench.simulator.replica.core import Core
from forkjoin_bench.simulator.replica.sequence import Role, Sequence, State
from forkjoin_scheduler.policy.deadlines import Deadlines
from forkjoin_scheduler.policy.step_admission import StepAdmission
from forkjoin_scheduler.policy.step_cost import Load
from forkjoin_scheduler.policy.threads import AIM, Capped, Eager, StepFacts, ThreadFacts, within


class Pacing:
    """Owns who sits a step out. Asks the policy before each, as ``vllm_seam/starts/thread_pacer.py`` does."""

    def __init__(self, core: Core) -> None:
        self._core, engine = core, core.engine
        self.policy = engine.policy()
        self._deadlines = None if engine.slo_itl is None else Deadlines(AIM * engine.slo_itl)
        #: Threads that sit the step out, and those that may not start in it.
        self.sitting: set[Sequence] = set()
        self.held_back: set[Sequence] = set()
        #: What it kept waiting in the step before counts here.
        self.step_admission = StepAdmission()
        self._chosen_for = -1, 0, False

    def choose(self) -> None:
        """Ask who runs in the step to come, where the answer may differ from the last.

        If the step before computed nothing, all run.
        """
        core = self._core
        is_eager = isinstance(self.policy, Eager)
        known = core.version, self.step_admission.num_kept, core.is_stalled
        if is_eager and self._chosen_for == known:
            return  # nothing has changed: the choice neither
        self._chosen_for = known
        self.sitting, self.held_back = set(), set()
        if core.is_stalled or not core.threads or (is_eager and not self._could_be_kept()):
            return
        by_key = {str(i): thread for i, thread in enumerate(core.threads)}
        facts = [self._facts(key, thread) for key, thread in by_key.items()]
        # Those that are to be admitted again are not chosen from: they have to ask for room.
        lost = [thread for thread in facts if core.asks_again(by_key[thread.key])]
        able = [thread for thread in facts if thread not in lost]
        chosen = self.policy.choose(
            StepFacts(
                able,
                self._load_of_others(),
                self._slack(),
                core.engine.max_num_seqs,
                self.step_admission.num_could_start(self._num_others_waiting()),
                core.engine.tokens_a_step,
            )
        )
        chosen |= {thread.key for thread in lost}
        if isinstance(self.policy, Capped):
            caps = {thread.family: self.policy.per_family for thread in facts}
            chosen = within(caps, [*able, *lost], chosen)
        for key, thread in by_key.items():
            if key not in chosen:
                (self.sitting if thread in core.running else self.held_back).add(thread)

    def _could_be_kept(self) -> bool:
        """Whether slots are short and threads want one: those that have one keep it."""
        core = self._core
        is_short = len(core.running) + len(core.waiting) + len(core.begun) > core.engine.max_num_seqs
        return is_short and any(t not in core.running for t in core.threads)

    def _facts(self, key: str, thread: Sequence) -> ThreadFacts:
        core = self._core
        context = thread.tokens_at(core.step)
        family = str(thread.family.number)
        written, has_slot = thread.written_at(core.step), thread in core.running
        turn = (thread.family.number,)
        return ThreadFacts(key, family, written, context, has_slot, 1 + core.engine.drafted, turn)

    def _load_of_others(self) -> Load:
        core = self._core
        others = [s for s in core.running if s.role is not Role.THREAD]
        each = 1 + core.engine.drafted
        num_tokens = sum(each if s.state is State.DECODING else s.tokens - s.kv.computed for s in others)
        context = sum(s.tokens_at(core.step) for s in others)
        return Load(len(others), min(num_tokens, core.engine.max_batched_tokens), context)

    def _num_others_waiting(self) -> int:
        """Requests that wait for a slot; threads and fills are none."""
        begun = sum(s.role is not Role.THREAD and not s.is_fill for s in self._core.begun)
        return len(self._core.waiting) + begun

    def _slack(self) -> float | None:
        if self._deadlines is None:
            return None
        families = {s.family for s in self._core.running if s.role is Role.ROOT} | self._core.admitted.keys()
        families -= {thread.family for thread in self._core.threads}
        written = {str(f.number): f.critical(self._core.step) for f in families}
        return self._deadlines.slack(written, self._core.now)
