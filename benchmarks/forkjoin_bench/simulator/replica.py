"""One engine in virtual time: what vLLM's scheduler and ours do in each step, and how long it takes.

Invariants (pinned by tests): every block is free or held by a live sequence; each request ends
exactly once; a run depends on its requests and settings alone.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from itertools import count

from forkjoin_bench.simulator.engine import Engine
from forkjoin_bench.simulator.pacing import Pacing
from forkjoin_bench.simulator.sequence import Cause, Family, Role, Sequence, State
from forkjoin_bench.simulator.workload import Request
from forkjoin_scheduler.policy.admission import Need, Room
from forkjoin_scheduler.policy.step_cost import Load


class Replica(Pacing):
    """Give it requests with ``submit``, and time with ``run``."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._numbers = count()
        self._budget = 0
        self._has_preempted = False
        #: Who could not start for want of blocks, and how many were free then.
        self._did_not_fit: tuple[Sequence | None, int] = None, 0
        self._num_free_then = 0
        #: Whether threads have sat out the step before.
        self._has_sat = False
        #: What the step prefills: sequence and tokens.
        self._chunks: list[tuple[Sequence, int]] = []

    @property
    def num_unfinished(self) -> int:
        """Requests that have not ended."""
        return len(self.families)

    def submit(self, request: Request) -> None:
        """``request`` arrives: now, or in the step that is under way."""
        if not self.families:
            self.now = max(self.now, request.arrival)
        family = Family(request, next(self._numbers))
        family.root = Sequence(family, request.body, request.prompt)
        if request.shared:
            family.root.kv.names = self._prefix_of(request.session, request.shared)
        self.families[family] = None
        self.version += 1
        self.waiting.append(family.root)

    def run(self, until: float = float("inf")) -> None:
        """Make all steps that begin before ``until``."""
        while self.families and self.now < until:
            self._make_step()

    # ---- one step --------------------------------------------------------------------------

    def _make_step(self) -> None:
        self._pace_threads()
        self.step += 1
        self._budget = self.engine.max_batched_tokens - self.num_decoding
        self._has_preempted, self._chunks = False, []
        self._grow_running()
        if not self._has_preempted:
            self._start_waiting()
        self._drop_copied_tails()
        num_decoding = self.num_decoding - self._num_sitting()
        if not num_decoding and not self._chunks:
            if not self.running:
                self.counts.num_evicted += 1
                self._evict_youngest()
            return
        self._take_time(num_decoding)
        self._book_tokens(num_decoding)

    def _num_sitting(self) -> int:
        return sum(s.state is State.DECODING for s in self._sitting)

    def _take_time(self, num_decoding: int) -> None:
        counts = self.counts
        num_prefilled = sum(n for _, n in self._chunks)
        context = self.context_decoding + sum(s.kv.computed for s, _ in self._chunks)
        context -= sum(s.tokens_at(self.step - 1) for s in self._sitting if s.state is State.DECODING)
        load = Load(num_decoding + len(self._chunks), num_decoding + num_prefilled, context)
        seconds = self.engine.cost(load)
        self.now += seconds
        counts.num_steps += 1
        counts.busy_s += seconds
        counts.num_rows += load.num_sequences
        counts.num_computed += load.num_tokens
        counts.peak_blocks = max(counts.peak_blocks, self.pool.num_blocks - self.pool.num_free)
        if num_in_time := num_decoding - self._num_back():
            counts.gaps.append((seconds, num_in_time))

    def _num_back(self) -> int:
        """Threads that sat out the step before this one, and decode in it: their gap is longer."""
        back = (
            [s for s in self.threads if s.last_at is not None and s.state is State.DECODING]
            if self._has_sat
            else []
        )
        num = 0
        for thread in back:
            if thread not in self._sitting:
                assert thread.last_at is not None
                self.counts.gaps.append((self.now - thread.last_at, 1))
                thread.last_at = None
                num += 1
        self._has_sat = bool(self._sitting) or (self._has_sat and len(back) > num)
        return num

    def _book_tokens(self, num_decoding: int) -> None:
        """The step has run: each that decodes has a token more, each that is prefilled perhaps its first."""
        self.counts.num_decoded += num_decoding
        self.context_decoding += num_decoding + self._num_sitting()
        for sequence in self._sitting:
            if sequence.state is State.DECODING:
                self._sit_out(sequence)
        self.context_decoding -= self._num_sitting()
        for sequence in self._end.pop(self.step, ()):
            if sequence.part_ends_at == self.step and sequence.state is State.DECODING:
                self._stop_decoding(sequence, self.step)
                self._part_done(sequence)
        for sequence, num in self._chunks:
            self.counts.prefilled[sequence.cause] += num
            if sequence.state is State.PREFILLING and sequence.kv.computed == sequence.tokens:
                self._sample_first(sequence)
        self._moved()
        self._continue_ahead()

    def _sample_first(self, sequence: Sequence) -> None:
        """Its whole context has KV now: the step has sampled its next token."""
        if sequence.is_fill:
            self._filled(sequence)
            return
        del self.prefilling[sequence]
        family = sequence.family
        sequence.tokens += 1
        sequence.written += 1
        sequence.left -= 1
        family.done += 1
        if sequence.last_at is not None:
            self.counts.gaps.append((self.now - sequence.last_at, 1))
            sequence.last_at = None
        if family.first_token_at is None:
            family.first_token_at = self.now
        if sequence.left:
            self._begin_decoding(sequence)
        else:
            self._part_done(sequence)

    # ---- what runs goes on -----------------------------------------------------------------

    def _grow_running(self) -> None:
        """Blocks and budget for all that run, the youngest giving way where there are too few."""
        is_spared = bool(self.threads) and self.pool.num_free < len(self.running)
        due = [
            s for s in self._grow.pop(self.step, ()) if s.grows_at == self.step and s.state is State.DECODING
        ]
        for sequence in sorted(due, key=lambda s: _turn(s, is_spared)):
            if sequence in self._sitting:
                self._book_growth(sequence, self.step)  # it is booked anew when the step has run
            elif sequence.state is State.DECODING and sequence.grows_at == self.step:
                tokens = sequence.tokens_at(self.step - 1)
                if self._make_room(sequence, tokens, is_spared):
                    self._extend(sequence.kv, tokens)
                    self._name_full(sequence.kv, tokens - 1)
                    self._book_growth(sequence, self.step + self.engine.block_size)
        for sequence in list(self.prefilling):
            if sequence.state is State.PREFILLING and self._budget > 0:
                num = min(sequence.tokens - sequence.kv.computed, self._budget)
                if self._make_room(sequence, sequence.kv.computed + num, is_spared):
                    self._prefill(sequence, num)

    def _book_growth(self, sequence: Sequence, step: int) -> None:
        sequence.grows_at = step
        if self.step < step <= sequence.part_ends_at:
            self._grow.setdefault(step, []).append(sequence)

    def _make_room(self, sequence: Sequence, tokens: int, is_spared: bool) -> bool:
        """Preempt until ``sequence`` can have ``tokens`` tokens of KV; False if it had to go itself."""
        num_wanted = self._num_blocks(tokens) - len(sequence.kv.blocks)
        while self.pool.num_free < num_wanted:
            victim = max(self.running, key=lambda s: _turn(s, is_spared))
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _preempt(self, victim: Sequence) -> None:
        self._has_preempted = True
        self.counts.num_preempted += 1
        if victim.state is State.DECODING:
            self._stop_decoding(victim, self.step - 1)
            victim.last_at = self.now
        self._leave(victim)
        self._name_full(victim.kv, victim.kv.computed)
        self._drop(victim.kv)
        victim.family.num_preempted += 1
        victim.state, victim.was_preempted, victim.cause = State.WAITING, True, Cause.RECOMPUTED
        self.waiting.appendleft(victim)

    def _prefill(self, sequence: Sequence, num: int) -> None:
        kv = sequence.kv
        self._extend(kv, kv.computed + num)
        kv.computed += num
        if not sequence.is_stitched:
            self._name_full(kv, kv.computed)
        self._budget -= num
        self._chunks.append((sequence, num))

    # ---- what waits starts -----------------------------------------------------------------

    def _start_waiting(self) -> None:
        skipped: list[tuple[deque[Sequence], Sequence]] = []
        self._door.open()
        while self._budget > 0 and len(self.running) < self.engine.max_num_seqs:
            queue = self.holding or self.waiting
            if not queue:
                break
            sequence = queue[0]
            if not self._may_start(sequence):
                skipped.append((queue, queue.popleft()))
                if self._door.is_shut:
                    break
            elif self._start(sequence):
                queue.popleft()
            else:
                break
        for queue, sequence in reversed(skipped):
            queue.appendleft(sequence)

    def _may_start(self, sequence: Sequence) -> bool:
        """As ``Admitting`` says."""
        if sequence in self._held_back:
            return False
        if not self._is_new(sequence):
            return True
        may_fork = sequence.family.request.may_fork
        return self._door.lets_in(partial(self._is_admitted, sequence), may_fork=may_fork)

    def _is_new(self, sequence: Sequence) -> bool:
        return (
            sequence.role is Role.ROOT
            and not sequence.written
            and not sequence.was_preempted
            and sequence.family not in self.admitted
        )

    def _is_admitted(self, root: Sequence) -> bool:
        found, _ = self._findable(root)
        num_new = self._num_blocks(root.tokens) - len(found) + self.pool.num_unheld(found)
        running = (self._come_to(family) for family in self.admitted)
        room = Room(self.pool.num_free, self.engine.block_size, self.engine.max_num_seqs)
        if not self.gate.admits(Need(blocks=num_new), running, len(self.admitted), room):
            return False
        self.admitted[root.family] = num_new
        return True

    def _come_to(self, family: Family) -> Need:
        step = self.step
        num_generated = family.generated(step)
        num_blocks = self.admitted[family] + num_generated // self.engine.block_size
        return Need(num_generated, family.widest, family.critical(step), num_blocks)

    def _start(self, sequence: Sequence) -> bool:
        """Let it run if its whole context fits."""
        if self._did_not_fit == (sequence, self.version) and self.pool.num_free <= self._num_free_then:
            return False
        kv, saved = sequence.kv, 0
        found: list[int] = []
        if not kv.computed:
            found, saved = self._findable(sequence)
        num_wanted = self._num_blocks(sequence.tokens) - len(kv.blocks) - len(found)
        if num_wanted + self.pool.num_unheld(found) > self.pool.num_free:
            self._did_not_fit, self._num_free_then = (sequence, self.version), self.pool.num_free
            return False
        if not kv.computed:
            self.pool.share(found)
            kv.blocks, kv.computed, kv.num_named = found, saved, len(found)
        sequence.state, sequence.rank = State.PREFILLING, next(self._ranks)
        self.version += 1
        self.running[sequence] = self.prefilling[sequence] = None
        self._prefill(sequence, min(sequence.tokens - kv.computed, self._budget))
        return True


def _turn(sequence: Sequence, is_spared: bool) -> tuple[int, int]:
    """Whose turn it is: the last gives way first. Spared, that is one of the youngest family."""
    return (sequence.family.number if is_spared else 0, sequence.rank)
