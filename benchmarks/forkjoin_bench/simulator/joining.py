"""Families in a replica: forks, ends of threads, what is prefilled ahead, joins, and evictions."""

from __future__ import annotations

from forkjoin_bench.simulator.core import Core
from forkjoin_bench.simulator.engine import Engine
from forkjoin_bench.simulator.sequence import Cause, Family, Kv, Role, Sequence, State, critical
from forkjoin_bench.simulator.workload import Fork, num_critical
from forkjoin_scheduler.policy.admission import Need


class Joining(Core):
    """What happens when a sequence has written a part, or a fill has computed its KV."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        #: Tokens that are being prefilled ahead, and parked sequences that wait to have some.
        self._num_ahead = 0
        self._ahead_waiting: list[Sequence] = []
        #: Blocks that a stitched join moves KV from, until its step has run.
        self._moving: dict[Sequence, list[Kv]] = {}
        #: Parked sequences whose threads have not all got their copies of its partly filled last block.
        self._copied_from: list[Sequence] = []

    def _part_done(self, sequence: Sequence) -> None:
        """It has written the last token of a part: it forks, or has ended."""
        self._leave(sequence)
        sequence.last_at = self.now
        self._name_full(sequence.kv, sequence.kv.computed)
        if sequence.part + 1 < len(sequence.body):
            self._fork(sequence)
        elif sequence.role is Role.ROOT:
            self._finish(sequence)
        else:
            self._thread_written(sequence)

    def _finish(self, root: Sequence) -> None:
        family, root.state = root.family, State.ENDED
        self._drop(root.kv)
        family.ended_at = self.now
        del self.families[family]
        if family in self.admitted:
            del self.admitted[family]
            self.gate.learn(Need(family.done, family.widest, num_critical(family.request.body)))
        self.counts.ended.append(family)

    # ---- fork ------------------------------------------------------------------------------

    def _fork(self, parent: Sequence) -> None:
        part = parent.body[parent.part + 1]
        assert isinstance(part, Fork)
        parent.state, parent.fill = State.PARKED, None
        self.threads.pop(parent, None)
        names = parent.kv.names[: parent.tokens // self.engine.block_size]
        parent.threads = [
            Sequence(
                parent.family,
                body,
                parent.tokens + self.engine.spoken.header,
                Role.THREAD,
                parent,
                position,
                Cause.HEADER,
                kv=Kv(names=list(names)),
                fork_len=parent.tokens,
                last_at=self.now,
                is_stitched=parent.is_stitched,
            )
            for position, body in enumerate(part.threads)
        ]
        parent.num_live_threads = len(parent.threads)
        parent.family.widest = max(parent.family.widest, len(parent.threads))
        self.holding.extend(parent.threads)
        self.threads.update(dict.fromkeys(parent.threads))
        self._copied_from.append(parent)

    def _drop_copied_tails(self) -> None:
        """A parked sequence goes on with its first thread's copy of its partly filled last block."""
        left, self._copied_from = self._copied_from, []
        for parent in left:
            if parent.state is not State.PARKED:
                continue
            if any(t.state is State.WAITING and not t.was_preempted for t in parent.threads):
                self._copied_from.append(parent)
            else:
                self._drop_tail(parent.kv)

    # ---- ends of threads -------------------------------------------------------------------

    def _thread_written(self, thread: Sequence) -> None:
        thread.state, parent, spoken = State.ENDED, thread.parent, self.engine.spoken
        assert parent is not None
        del self.threads[thread]
        if spoken.is_stitched and spoken.close:
            self._fill(parent, thread.position, Role.CLOSE, thread.kv, thread.kv.computed + spoken.close)
        elif thread.position == 0 or spoken.is_stitched:
            self._closed(parent, thread.position, thread.kv)
        else:
            self._drop(thread.kv)
            self._closed(parent, thread.position, None)

    def _closed(self, parent: Sequence, position: int, kv: Kv | None) -> None:
        """All that is needed of a thread's KV is there."""
        if kv is not None:
            parent.held[position] = kv
        parent.num_live_threads -= 1
        if not parent.num_live_threads:
            self._join(parent)
        else:
            self._prefill_ahead(parent)

    # ---- fills -----------------------------------------------------------------------------

    def _fill(self, parent: Sequence, position: int, role: Role, kv: Kv, tokens: int) -> Sequence:
        """Compute the KV of ``tokens`` tokens, from ``kv`` on."""
        cause = Cause.AHEAD if role is Role.AHEAD else Cause.CLOSE
        fill = Sequence(parent.family, (1,), tokens, role, parent, position, cause, kv=kv)
        fill.fork_len = parent.tokens
        self.version += 1
        self.holding.append(fill)
        return fill

    def _filled(self, fill: Sequence) -> None:
        """A fill has run; its sample is dropped."""
        self._leave(fill)
        fill.state, parent = State.ENDED, fill.parent
        assert parent is not None
        if fill.role is Role.CLOSE:
            self._closed(parent, fill.position, fill.kv)
            return
        self._end_ahead(parent, fill)
        parent.held[0] = fill.kv
        self._prefill_ahead(parent)

    def _end_ahead(self, parent: Sequence, fill: Sequence) -> None:
        parent.fill = None
        self._num_ahead -= fill.left

    def _prefill_ahead(self, parent: Sequence) -> None:
        """Prefill threads that have ended behind the first, as far as the step has tokens left."""
        most, spoken = self.engine.join_ahead_tokens, self.engine.spoken
        if not most or spoken.is_stitched or parent.fill is not None or 0 not in parent.held:
            return
        held, end = parent.held[0], parent.tokens
        for thread in parent.threads:
            if thread.state is not State.ENDED:
                return
            end += self._joined_tokens(thread)
            if held.computed < end and thread.position > 0:
                break
        else:
            return
        room = most - self._num_ahead
        if room <= 0:
            self._ahead_waiting.append(parent)
            return
        num = min(room, end - held.computed)
        parent.fill = self._fill(parent, 0, Role.AHEAD, parent.held.pop(0), held.computed + num)
        parent.fill.left = num
        self._num_ahead += num

    def _continue_ahead(self) -> None:
        waiting, self._ahead_waiting = self._ahead_waiting, []
        for parent in waiting:
            if parent.state is State.PARKED:
                self._prefill_ahead(parent)

    def _taken_over(self, parent: Sequence) -> Kv | None:
        """What has the beginning of the joined context, a fill that is under way included."""
        fill = parent.fill
        if fill is None:
            return parent.held.pop(0, None)
        self._leave(fill)
        if fill.state is State.WAITING:
            (self.waiting if fill.was_preempted else self.holding).remove(fill)
        fill.state = State.ENDED
        self._end_ahead(parent, fill)
        return fill.kv if fill.kv.computed else None

    # ---- join ------------------------------------------------------------------------------

    def _joined_tokens(self, thread: Sequence) -> int:
        spoken = self.engine.spoken
        fewer = spoken.header - spoken.joined_header if thread.position else 0
        return thread.tokens - thread.fork_len - fewer

    def _join(self, parent: Sequence) -> None:
        spoken, threads = self.engine.spoken, parent.threads
        num_joined = sum(map(self._joined_tokens, threads))
        parent.longest += max(critical(t, self.step) for t in threads)
        if spoken.is_stitched:
            self._stitch(parent, num_joined)
        elif (kv := self._taken_over(parent)) is not None:
            self._drop(parent.kv)
            parent.kv = kv
        parent.tokens += num_joined + spoken.join
        parent.threads = []
        parent.part += 2
        parent.left = parent.written_part()
        parent.cause = Cause.JOIN if parent.kv.computed else Cause.RECOMPUTED
        parent.last_at = self.now
        if parent.role is Role.THREAD:
            self.threads[parent] = None
        self._queue(parent)

    def _stitch(self, parent: Sequence, num_joined: int) -> None:
        """Put the threads' KV together in their own blocks; if some of it was lost all is computed anew."""
        held, parent.held = parent.held, {}
        parent.is_stitched = True
        self._drop(parent.kv)
        if len(held) < len(parent.threads):
            for kv in held.values():
                self._drop(kv)
            return
        parent.kv = held.pop(0)
        parent.kv.computed = parent.tokens + num_joined
        num_missing = self._num_blocks(parent.kv.computed) - len(parent.kv.blocks)
        first = parent.tokens // self.engine.block_size  # before it are the shared ones
        for kv in held.values():
            own = kv.blocks[first:]
            taken = own[: max(num_missing, 0)]
            parent.kv.blocks += taken
            kv.blocks[first:] = own[len(taken) :]
            num_missing -= len(taken)
        self._moving[parent] = list(held.values())

    def _moved(self) -> None:
        """The step has run: what was moved from is free."""
        for parent in [p for p in self._moving if p in self.running or p.state is not State.WAITING]:
            for kv in self._moving.pop(parent):
                self._drop(kv)

    # ---- KV pressure -----------------------------------------------------------------------

    def _evict_youngest(self) -> None:
        """Nothing runs and nothing could start: take back what the youngest family waits with."""
        closing = [s for s in self.holding if s.role is Role.CLOSE and s.kv.computed]
        for family in reversed(self.families):
            if holders := _holders(family.root) + [s for s in closing if s.family is family]:
                self._evict(family, holders)
                return
        raise RuntimeError(
            f"expected every request to fit into {self.engine.num_blocks} blocks, one does not: "
            "simulate an engine with more"
        )

    def _evict(self, family: Family, holders: list[Sequence]) -> None:
        for sequence in holders:
            for kv in self._moving.pop(sequence, []):
                self._drop(kv)
            self._drop(sequence.kv)
            if fill := sequence.fill:
                self._taken_over(sequence)
                self._drop(fill.kv)
            for kv in sequence.held.values():
                self._drop(kv)
            sequence.held.clear()
            if sequence.state is State.WAITING:
                self.holding.remove(sequence)
                sequence.cause = Cause.RECOMPUTED
                self._queue(sequence)


def _holders(sequence: Sequence) -> list[Sequence]:
    """Those of a tree that wait with KV."""
    found = [h for t in sequence.threads for h in _holders(t)]
    waits = sequence.state in (State.WAITING, State.PARKED)
    if waits and (sequence.kv.computed or sequence.held or sequence.fill):
        found.insert(0, sequence)
    return found
