"""Which threads run in a step, by the scheduler's own policies (``policy/threads.py``)."""

from __future__ import annotations

from forkjoin_bench.simulator.engine import Engine
from forkjoin_bench.simulator.joining import Joining
from forkjoin_bench.simulator.sequence import Role, Sequence, State
from forkjoin_scheduler.policy.deadlines import Deadlines
from forkjoin_scheduler.policy.door import Door
from forkjoin_scheduler.policy.step_cost import Load
from forkjoin_scheduler.policy.threads import Eager, StepFacts, ThreadFacts


class Pacing(Joining):
    """Asks the policy before each step, as ``vllm_seam/starts/thread_pacer.py`` does."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.policy = engine.policy()
        self._deadlines = None if engine.slo_itl is None else Deadlines(engine.slo_itl)
        #: Threads that sit the step out, and those that may not start in it.
        self._sitting: set[Sequence] = set()
        self._held_back: set[Sequence] = set()
        #: What it kept waiting in the step before counts here.
        self._door = Door()
        self._chosen_for = -1, 0

    def _pace_threads(self) -> None:
        is_eager = isinstance(self.policy, Eager)
        if is_eager and self._chosen_for == (self.version, self._door.num_kept):
            return  # nothing has changed: the choice neither
        self._chosen_for = self.version, self._door.num_kept
        self._sitting, self._held_back = set(), set()
        if not self.threads or (is_eager and not self._could_be_kept()):
            return
        by_key = {str(i): thread for i, thread in enumerate(self.threads)}
        chosen = self.policy.choose(
            StepFacts(
                [self._facts(key, thread) for key, thread in by_key.items()],
                self._load_of_others(),
                self._slack(),
                self.engine.max_num_seqs,
                self._door.num_could_start(self._num_others_waiting()),
            )
        )
        for key, thread in by_key.items():
            if key not in chosen:
                (self._sitting if thread in self.running else self._held_back).add(thread)

    def _could_be_kept(self) -> bool:
        """Whether slots are short and threads want one: those that have one keep it."""
        is_short = len(self.running) + len(self.waiting) + len(self.holding) > self.engine.max_num_seqs
        return is_short and any(t not in self.running for t in self.threads)

    def _facts(self, key: str, thread: Sequence) -> ThreadFacts:
        context = thread.tokens_at(self.step)
        family = str(thread.family.number)
        return ThreadFacts(key, family, thread.written_at(self.step), context, thread in self.running)

    def _load_of_others(self) -> Load:
        others = [s for s in self.running if s.role is not Role.THREAD]
        num_tokens = sum(1 if s.state is State.DECODING else s.tokens - s.kv.computed for s in others)
        context = sum(s.tokens_at(self.step) for s in others)
        return Load(len(others), min(num_tokens, self.engine.max_batched_tokens), context)

    def _num_others_waiting(self) -> int:
        waiting = len(self.waiting) + len(self.holding)
        return waiting - sum(t not in self.running for t in self.threads)

    def _slack(self) -> float | None:
        if self._deadlines is None:
            return None
        families = {s.family for s in self.running if s.role is Role.ROOT} | self.admitted.keys()
        written = {str(f.number): f.critical(self.step) for f in families}
        return self._deadlines.slack(written, self.now)
