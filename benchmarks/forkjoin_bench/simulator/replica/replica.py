"""One engine in virtual time: what vLLM's scheduler and ours do in each step, and how long it takes.

Invariants (pinned by tests): every block is free or held by a live sequence; each request ends
exactly once; a run depends on its requests and settings alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import count

from forkjoin_bench.simulator.engine import Engine
from forkjoin_bench.simulator.replica.core import Core
from forkjoin_bench.simulator.replica.families import Families
from forkjoin_bench.simulator.replica.pacing import Pacing
from forkjoin_bench.simulator.replica.relief import Relief
from forkjoin_bench.simulator.replica.sequence import Cause, Family, Sequence, State
from forkjoin_bench.simulator.replica.starting import Starting
from forkjoin_bench.simulator.workload import Request
from forkjoin_scheduler.families.family import Branch
from forkjoin_scheduler.policy.step_cost import Load


class Replica:
    """Give it requests with ``submit``, and time with ``run``."""

    def __init__(self, engine: Engine) -> None:
        self.core = core = Core(engine)
        self._families = families = Families(core)
        self._pacing = pacing = Pacing(core)
        self._starting = Starting(core, pacing)
        self._relief = Relief(core, families)
        self._numbers = count()
        self._has_preempted = False
        #: Whether threads have sat out the step before.
        self._has_sat = False

    @property
    def num_unfinished(self) -> int:
        """Requests that have not ended."""
        return len(self.core.families)

    def submit(self, request: Request) -> None:
        """``request`` arrives: now, or in the step that is under way."""
        if not self.core.families:
            self.core.now = max(self.core.now, request.arrival)
        family = Family(request, next(self._numbers))
        family.root = Sequence(family, request.body, request.prompt, branch=Branch(str(family.number)))
        family.sequences[family.root.branch] = family.root
        if request.shared:
            family.root.kv.names = self.core.prefix_of(request.session, request.shared)
        self.core.families[family] = None
        self.core.version += 1
        self.core.waiting.append(family.root)

    def run(self, until: float = float("inf")) -> None:
        """Make all steps that begin before ``until``."""
        while self.core.families and self.core.now < until:
            self._make_step()

    # ---- one step --------------------------------------------------------------------------

    def _make_step(self) -> None:
        core = self.core
        core.forget_regained()
        self._spare_the_oldest()
        self._pacing.choose()
        self._pacing.step_admission.open()
        core.step += 1
        core.budget = core.engine.max_batched_tokens - core.num_decoding
        self._has_preempted, core.chunks = False, []
        self._grow_running()
        if not self._has_preempted:
            self._starting.start_waiting()
        self._families.drop_copied_tails()
        num_decoding = core.num_decoding - self._num_sitting()
        core.is_stalled = not num_decoding and not core.chunks
        if core.is_stalled:
            if not core.running:
                self._relief.relieve()
            return
        self._take_time(num_decoding)
        self._book_tokens(num_decoding)

    def _num_sitting(self) -> int:
        return sum(s.state is State.DECODING for s in self._pacing.sitting)

    def _take_time(self, num_decoding: int) -> None:
        core = self.core
        counts = core.counts
        num_prefilled = sum(n for _, n in core.chunks)
        context = core.context_decoding + sum(s.kv.computed for s, _ in core.chunks)
        context -= sum(s.tokens_at(core.step - 1) for s in self._pacing.sitting if s.state is State.DECODING)
        load = Load(num_decoding + len(core.chunks), num_decoding + num_prefilled, context)
        seconds = self._seconds(load, num_decoding)
        core.now += seconds
        counts.num_steps += 1
        counts.busy_s += seconds
        counts.num_rows += load.num_sequences
        counts.num_computed += load.num_tokens
        counts.peak_blocks = max(counts.peak_blocks, core.pool.num_blocks - core.pool.num_free)
        if num_in_time := num_decoding - self._num_back():
            counts.gaps.append((seconds, num_in_time))

    def _seconds(self, load: Load, num_decoding: int) -> float:
        """What a step of ``load`` takes; with drafts, the share of one of the tokens that it brings.

        What it prefills is paid whole: drafts bring no more of that.
        """
        engine = self.core.engine
        if not engine.drafted:
            return engine.cost(load)
        num_drafts = num_decoding * engine.drafted
        whole = engine.cost(replace(load, num_tokens=load.num_tokens + num_drafts))
        decoding = engine.cost(Load(num_decoding, num_decoding + num_drafts, load.num_context))
        return whole - decoding * (1 - 1 / engine.tokens_a_step) if num_decoding else whole

    def _num_back(self) -> int:
        """Threads that sat out the step before this one, and decode in it: their gap is longer."""
        back = (
            [s for s in self.core.threads if s.last_at is not None and s.state is State.DECODING]
            if self._has_sat
            else []
        )
        num = 0
        for thread in back:
            if thread not in self._pacing.sitting:
                assert thread.last_at is not None
                self.core.counts.gaps.append((self.core.now - thread.last_at, 1))
                thread.last_at = None
                num += 1
        self._has_sat = bool(self._pacing.sitting) or (self._has_sat and len(back) > num)
        return num

    def _book_tokens(self, num_decoding: int) -> None:
        """The step has run: each that decodes has a token more, each that is prefilled perhaps its first."""
        core = self.core
        core.counts.num_decoded += num_decoding
        core.context_decoding += num_decoding + self._num_sitting()
        for sequence in self._pacing.sitting:
            if sequence.state is State.DECODING:
                core.sit_out(sequence)
        core.context_decoding -= self._num_sitting()
        for sequence in core.ends.pop(core.step, ()):
            if sequence.part_ends_at == core.step and sequence.state is State.DECODING:
                core.stop_decoding(sequence, core.step)
                self._families.part_done(sequence)
        for sequence, num in core.chunks:
            core.counts.prefilled[sequence.cause] += num
            if sequence.state is State.PREFILLING and sequence.kv.computed == sequence.tokens:
                self._sample_first(sequence)
        self._families.stitching.moved()
        self._families.ahead.go_on()

    def _sample_first(self, sequence: Sequence) -> None:
        """Its whole context has KV now: the step has sampled its next token."""
        if sequence.is_fill:
            self._families.filled(sequence)
            return
        del self.core.prefilling[sequence]
        if not sequence.left:  # it forks before it writes: the sample is dropped
            self._families.part_done(sequence)
            return
        family = sequence.family
        sequence.tokens += 1
        sequence.written += 1
        sequence.left -= 1
        family.done += 1
        if sequence.last_at is not None:
            self.core.counts.gaps.append((self.core.now - sequence.last_at, 1))
            sequence.last_at = None
        if family.first_token_at is None:
            family.first_token_at = self.core.now
        if sequence.left:
            self.core.begin_decoding(sequence)
        else:
            self._families.part_done(sequence)

    # ---- what runs goes on -----------------------------------------------------------------

    def _spare_the_oldest(self) -> None:
        """Where blocks may run out in the next step, let the family give way whose turn comes last.

        Before the threads of the step are chosen, as in ``ForkJoinScheduler.schedule``.
        """
        core = self.core
        if not core.threads or core.pool.num_free >= len(core.running):
            return
        if core.pool.num_free < self._num_lacking():
            self._relief.make_way()
        core.sort_running()

    def _num_lacking(self) -> int:
        """Blocks that the next step takes for those whose next is due, and for what is prefilled."""
        core = self.core
        due = self._due(core.grows.get(core.step + 1, ()), core.step + 1)
        num_tokens = [(s, s.tokens_at(core.step)) for s in due] + [(s, s.tokens) for s in core.prefilling]
        return sum(core.num_blocks(num) - len(s.kv.blocks) for s, num in num_tokens)

    def _due(self, booked: Iterable[Sequence], step: int) -> list[Sequence]:
        """Those of the ``booked`` that take a block in ``step``, in their turn."""
        due = [s for s in booked if s.grows_at == step and s.state is State.DECODING]
        return sorted(due, key=lambda s: s.rank)

    def _grow_running(self) -> None:
        """Blocks and budget for all that run, the last giving way where there are too few."""
        core = self.core
        for sequence in self._due(core.grows.pop(core.step, ()), core.step):
            if sequence in self._pacing.sitting:
                self._book_growth(sequence, core.step)  # it is booked again when the step has run
            elif sequence.state is State.DECODING and sequence.grows_at == core.step:
                tokens = sequence.tokens_at(core.step - 1)
                if self._make_room(sequence, tokens):
                    core.extend(sequence.kv, tokens)
                    core.name_full(sequence.kv, tokens - 1)
                    self._book_growth(sequence, core.step + core.engine.block_size)
        for sequence in sorted(core.prefilling, key=lambda s: s.rank):
            if sequence.state is State.PREFILLING and core.budget > 0:
                num = min(sequence.tokens - sequence.kv.computed, core.budget)
                if self._make_room(sequence, sequence.kv.computed + num):
                    core.prefill(sequence, num)

    def _book_growth(self, sequence: Sequence, step: int) -> None:
        sequence.grows_at = step
        if self.core.step < step <= sequence.part_ends_at:
            self.core.grows.setdefault(step, []).append(sequence)

    def _make_room(self, sequence: Sequence, tokens: int) -> bool:
        """Preempt until ``sequence`` can have ``tokens`` tokens of KV; False if it had to go itself."""
        num_wanted = self.core.num_blocks(tokens) - len(sequence.kv.blocks)
        while self.core.pool.num_free < num_wanted:
            victim = max(self.core.running, key=lambda s: s.rank)
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _preempt(self, victim: Sequence) -> None:
        self._has_preempted = True
        self.core.counts.num_preempted += 1
        if victim.state is State.DECODING:
            self.core.stop_decoding(victim, self.core.step - 1)
            victim.last_at = self.core.now
        self.core.leave(victim)
        self.core.name_full(victim.kv, victim.kv.computed)
        self.core.drop(victim.kv)
        victim.family.num_preempted += 1
        self.core.lost(victim.family)
        victim.state, victim.was_preempted, victim.cause = State.WAITING, True, Cause.RECOMPUTED
        self.core.begun.append(victim)
