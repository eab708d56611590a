"""The progressive join (``machine/ahead.py``) on counted blocks."""

from __future__ import annotations

from itertools import accumulate

from forkjoin_bench.simulator.replica.core import Core
from forkjoin_bench.simulator.replica.sequence import Cause, Kv, Role, Sequence, State
from forkjoin_scheduler.joins.joined import joined_ids
from forkjoin_scheduler.machine import ahead


class EagerJoinPrefill:
    """Prefills for joins to come. Owns how many tokens of that are under way, and who waits to have some."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._num_tokens = 0
        self._waiting: list[Sequence] = []

    def prefill(self, parent: Sequence) -> None:
        """Prefill threads that have ended after the first, as far as the step has tokens left."""
        family, branch = parent.family, parent.branch
        most, machine = self._core.engine.join_ahead_tokens, family.machine
        assert machine is not None
        if not most or parent.fill is not None or 0 not in parent.held:
            return
        if not ahead.may_prefill(machine, branch):
            return
        held, room = parent.held[0], most - self._num_tokens
        ended = branch.waits_for[: ahead.num_ended(machine, branch)]
        lengths = [len(joined_ids(machine.dialect, t, machine.world.tokenizer)) for t in ended]
        ends = list(accumulate(lengths, initial=parent.tokens))[2:]  # after the first it begins
        end = ahead.next_end(held.computed, ends, room)
        if end > held.computed:
            parent.fill = self._core.fill(parent, 0, Role.AHEAD, Cause.AHEAD, parent.held.pop(0), end)
            parent.fill.left = end - held.computed
            self._num_tokens += parent.fill.left
        elif ends[-1] > held.computed:
            self._waiting.append(parent)

    def go_on(self) -> None:
        """Prefill for those for which the last step had no tokens left."""
        waiting, self._waiting = self._waiting, []
        for parent in waiting:
            if parent.state is State.PARKED:
                self.prefill(parent)

    def filled(self, fill: Sequence) -> None:
        """A slice has its KV."""
        parent = fill.parent
        assert parent is not None
        self._end(parent, fill)
        parent.held[0] = fill.kv
        self.prefill(parent)

    def take(self, parent: Sequence) -> Kv | None:
        """What has the beginning of the joined context, a slice that is under way included."""
        fill = parent.fill
        if fill is None:
            return parent.held.pop(0, None)
        self._core.take_out(fill)
        self._end(parent, fill)
        return fill.kv if fill.kv.computed else None

    def _end(self, parent: Sequence, fill: Sequence) -> None:
        parent.fill = None
        self._num_tokens -= fill.left
