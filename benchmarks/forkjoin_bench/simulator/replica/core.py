"""The state of a replica: who runs and waits, who decodes until when, and who holds which blocks."""

from __future__ import annotations

from collections import deque
from itertools import chain, count

from forkjoin_bench.simulator.engine import Engine
from forkjoin_bench.simulator.replica.begun import BegunQueue
from forkjoin_bench.simulator.replica.blocks import BlockPool
from forkjoin_bench.simulator.replica.sequence import Cause, Family, Kv, Role, Sequence, State
from forkjoin_bench.simulator.results.measures import Counts
from forkjoin_scheduler.policy.admission import Room

Book = dict[int, list[Sequence]]


class Core:
    """Owns who runs and waits, and the blocks. All parts of a replica share it."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.pool = BlockPool(engine.num_blocks)
        self.counts = Counts()
        #: Virtual seconds, and the step that is made, or was made last.
        self.now, self.step = 0.0, 0
        #: In the order in which they came to run.
        self.running: dict[Sequence, None] = {}
        self.prefilling: dict[Sequence, None] = {}
        self.waiting: deque[Sequence] = deque()
        #: Those that have begun: before all that wait to start.
        self.begun = BegunQueue()
        self.num_decoding, self.context_decoding = 0, 0
        #: Families whose requests may fork and were admitted, until they end.
        self.admitted: dict[Family, None] = {}
        #: Those of them that have lost blocks, and have not been admitted again.
        self.lost_blocks: dict[Family, None] = {}
        #: The step in which a request that was not admitted is asked for again.
        self.asked_next = 0
        #: Requests that have not ended.
        self.families: dict[Family, None] = {}
        #: Threads that could run: they run or wait.
        self.threads: dict[Sequence, None] = {}
        self.gate = engine.gate()
        #: Whether the step before computed nothing.
        self.is_stalled = False
        #: Tokens that the step may still compute, and what it prefills: sequence and tokens.
        self.budget = 0
        self.chunks: list[tuple[Sequence, int]] = []
        #: Counts what changes who runs or waits.
        self.version = 0
        self._sorted_for = -1
        self.grows: Book = {}
        self.ends: Book = {}
        self._names = count(1)
        self.ranks = count()
        self._prefixes: dict[int, list[int]] = {}

    # ---- who decodes -----------------------------------------------------------------------

    def begin_decoding(self, sequence: Sequence) -> None:
        """Its first token of this stretch was sampled in this step: book what comes."""
        step = self.step
        sequence.state, sequence.since = State.DECODING, step
        family = sequence.family
        family.num_decoding += 1
        family.sum_since += step
        self.num_decoding += 1
        self.context_decoding += sequence.tokens
        sequence.part_ends_at = step + sequence.left
        # The token sampled last has no KV yet.
        sequence.grows_at = step + 1 + (1 - sequence.tokens) % self.engine.block_size
        self._book(sequence)

    def _book(self, sequence: Sequence) -> None:
        if sequence.grows_at <= sequence.part_ends_at:
            self.grows.setdefault(sequence.grows_at, []).append(sequence)
        self.ends.setdefault(sequence.part_ends_at, []).append(sequence)

    def stop_decoding(self, sequence: Sequence, behind: int) -> None:
        """It decodes no more; ``behind`` was the last step in which it did."""
        num, family = behind - sequence.since, sequence.family
        sequence.tokens += num
        sequence.written += num
        sequence.left -= num
        sequence.kv.computed = sequence.tokens - 1
        sequence.state = State.WAITING
        family.done += num
        family.num_decoding -= 1
        family.sum_since -= sequence.since
        self.num_decoding -= 1
        self.context_decoding -= sequence.tokens

    def sit_out(self, sequence: Sequence) -> None:
        """It decodes, but did not in the step just made: all that is booked comes a step later."""
        sequence.since += 1
        sequence.family.sum_since += 1
        sequence.grows_at += 1
        sequence.part_ends_at += 1
        self._book(sequence)

    # ---- who holds what --------------------------------------------------------------------

    def num_blocks(self, tokens: int) -> int:
        return -(-tokens // self.engine.block_size)

    def extend(self, kv: Kv, tokens: int) -> None:
        """Take the blocks that ``tokens`` tokens of KV need: there are enough."""
        for _ in range(self.num_blocks(tokens) - len(kv.blocks)):
            kv.blocks.append(self.pool.take())

    def name_full(self, kv: Kv, tokens: int) -> None:
        """Let the full blocks of ``tokens`` tokens be found."""
        for i in range(kv.num_named, min(tokens // self.engine.block_size, len(kv.blocks))):
            if i == len(kv.names):
                kv.names.append(next(self._names))
            self.pool.name(kv.blocks[i], kv.names[i])
            kv.num_named = i + 1

    def drop(self, kv: Kv) -> None:
        """Give the blocks back."""
        self.pool.give_back(kv.blocks)
        kv.blocks, kv.computed, kv.num_named = [], 0, 0

    def drop_tail(self, kv: Kv) -> None:
        """Give the partly filled last block back."""
        num_whole = kv.computed // self.engine.block_size
        self.pool.give_back(kv.blocks[num_whole:])
        del kv.blocks[num_whole:]
        kv.computed = num_whole * self.engine.block_size

    def cut(self, kv: Kv, tokens: int, known: int = 0) -> None:
        """Give back all behind the full blocks of the first ``tokens`` tokens: another text follows them.

        That begins as the old one did up to ``known`` tokens, so blocks of these may be found again.
        """
        num_whole = min(tokens // self.engine.block_size, len(kv.blocks))
        self.pool.give_back(kv.blocks[num_whole:])
        del kv.blocks[num_whole:], kv.names[max(num_whole, known // self.engine.block_size) :]
        kv.num_named = min(kv.num_named, num_whole)
        kv.computed = min(kv.computed, num_whole * self.engine.block_size)

    def findable(self, sequence: Sequence) -> tuple[list[int], int]:
        """Blocks that ``sequence`` may start on, and the tokens that they save it."""
        parent, size = sequence.parent, self.engine.block_size
        if parent is not None and parent.kv.computed and sequence.role is not Role.AHEAD:
            shared = min(parent.kv.computed, sequence.fork_len, sequence.tokens - 1)
            return parent.kv.blocks[: shared // size], shared
        if sequence.is_stitched:
            return [], 0
        found = self.pool.find(sequence.kv.names[: (sequence.tokens - 1) // size])
        return found, len(found) * size

    def prefix_of(self, session: int, tokens: int) -> list[int]:
        """The names of the full blocks that a session's requests begin with."""
        names = self._prefixes.setdefault(session, [])
        while len(names) < tokens // self.engine.block_size:
            names.append(next(self._names))
        return names[: tokens // self.engine.block_size]

    def prefill(self, sequence: Sequence, num: int) -> None:
        kv = sequence.kv
        self.extend(kv, kv.computed + num)
        kv.computed += num
        if sequence.is_stitched:
            self._restore_parents(sequence)
        else:
            self.name_full(kv, kv.computed)
        self.budget -= num
        self.chunks.append((sequence, num))

    @property
    def room(self) -> Room:
        """What is free."""
        return Room(self.pool.num_free, self.engine.block_size, self.engine.max_num_seqs)

    def lost(self, family: Family) -> None:
        """``family`` has lost blocks."""
        if self.gate.asks_again and family in self.admitted:
            self.lost_blocks[family] = None

    def asks_again(self, sequence: Sequence) -> bool:
        """Whether ``sequence``, which has begun, is to be admitted again before it runs."""
        return sequence.family in self.lost_blocks and _has_lost_kv(sequence)

    def forget_regained(self) -> None:
        """Families that lack nothing any more need not be admitted again."""
        fills = [s for s in chain(self.begun, self.running) if s.is_fill] if self.lost_blocks else []
        for family in list(self.lost_blocks):
            own = chain(family.sequences.values(), (s for s in fills if s.family is family))
            if not any(map(_has_lost_kv, own)):
                del self.lost_blocks[family]

    def _restore_parents(self, sequence: Sequence) -> None:
        """Give parents that have lost their stitched KV that of a thread that has computed it again."""
        size, thread = self.engine.block_size, sequence
        while (parent := thread.parent) is not None and parent.state is State.PARKED and not parent.kv.blocks:
            num_whole = thread.fork_len // size
            if sequence.is_fill or sequence.kv.computed < num_whole * size:
                return
            parent.kv.blocks, parent.kv.computed = sequence.kv.blocks[:num_whole], num_whole * size
            self.pool.share(parent.kv.blocks)
            thread = parent

    # ---- queues ----------------------------------------------------------------------------

    def leave(self, sequence: Sequence) -> None:
        """Take it out of those that run."""
        self.version += 1
        self.running.pop(sequence, None)
        self.prefilling.pop(sequence, None)

    def sort_running(self) -> None:
        """Let the youngest families stand last in the turn of those that run, from now on."""
        if self._sorted_for == self.version:
            return
        for sequence in sorted(self.running, key=lambda s: (s.family.number, s.rank)):
            sequence.rank = next(self.ranks)
        self._sorted_for = self.version

    def queue(self, sequence: Sequence) -> None:
        """It has begun, and waits to run."""
        self.version += 1
        sequence.state = State.WAITING
        self.begun.append(sequence)

    def fill(
        self, parent: Sequence, position: int, role: Role, cause: Cause, kv: Kv, tokens: int
    ) -> Sequence:
        """Compute the KV of ``tokens`` tokens, from ``kv`` on, for a parked ``parent``."""
        fill = Sequence(parent.family, (1,), tokens, role, parent, position, cause, kv=kv)
        fill.fork_len = parent.tokens
        self.version += 1
        self.begun.append(fill)
        return fill

    def take_out(self, fill: Sequence) -> None:
        """End ``fill``, wherever it stands."""
        self.leave(fill)
        if fill.state is State.WAITING:
            self.begun.remove(fill)
        fill.state = State.ENDED


def _has_lost_kv(sequence: Sequence) -> bool:
    """Whether ``sequence``, which has begun, has no KV. A new thread has its parent's."""
    if sequence.kv.computed:
        return False
    is_new = sequence.state is State.WAITING and not (sequence.was_preempted or sequence.written)
    if sequence.role is Role.THREAD and is_new:
        assert sequence.parent is not None
        return not sequence.parent.kv.computed
    return True
