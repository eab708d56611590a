"""Blocks are short: a family gives back what it waits with."""

from __future__ import annotations

from collections.abc import Iterable

from forkjoin_bench.simulator.replica.core import Core
from forkjoin_bench.simulator.replica.families import Families
from forkjoin_bench.simulator.replica.sequence import Cause, Family, Role, Sequence, State
from forkjoin_scheduler.policy.eviction import FamilyFacts, LastCome


class NoRoom(RuntimeError):
    """A request fits into the KV cache not even alone."""


class Relief:
    """Takes back the blocks of families. Keeps nothing."""

    def __init__(self, core: Core, families: Families) -> None:
        self._core, self._families = core, families

    def relieve(self) -> None:
        """Take back what the family waits with that the scheduler's policy chooses.

        Raises NoRoom where no family waits with anything.
        """
        core = self._core
        holding = self._holding(core.families)
        if not holding:
            raise NoRoom(
                f"expected every request to fit into {core.engine.num_blocks} blocks, one does not: "
                "simulate an engine with more"
            )
        self._take_back(holding)

    def make_way(self) -> None:
        """Take back the blocks of a family that only waits, as ``vllm_seam/cache/eviction.py`` does."""
        core = self._core
        running = {s.family for s in core.running}
        if not core.gate.asks_again or not any(f.machine for f in running):
            return
        last = max(f.number for f in running)
        closing = {s.family for s in core.begun if s.role is Role.CLOSE}
        younger = [f for f in core.families if f.number > last and f.machine and f not in closing]
        holding = self._holding(f for f in younger if not any(s.held or s.fill for s in f.sequences.values()))
        if holding:
            self._take_back(holding)

    def _holding(self, families: Iterable[Family]) -> dict[Family, list[Sequence]]:
        """Those of ``families`` that wait with blocks, and what of them does."""
        closing = [s for s in self._core.begun if s.role is Role.CLOSE and s.kv.computed]
        holding = {f: _holders(f.root) + [s for s in closing if s.family is f] for f in families}
        return {f: holders for f, holders in holding.items() if holders}

    def _take_back(self, holding: dict[Family, list[Sequence]]) -> None:
        """Evict that which the scheduler's policy chooses."""
        by_key = {str(f.number): f for f in holding}
        victim = by_key[LastCome().choose([_facts(f, holding[f]) for f in holding])]
        self._evict(victim, holding[victim])

    def _evict(self, family: Family, holders: list[Sequence]) -> None:
        core, families = self._core, self._families
        core.counts.num_evicted += 1
        core.lost(family)
        for sequence in holders:
            families.stitching.drop(sequence)
            core.drop(sequence.kv)
            if sequence.state is State.WAITING:
                core.begun.remove(sequence)
                sequence.cause = Cause.RECOMPUTED
                core.queue(sequence)
        for sequence in holders:
            if fill := sequence.fill:
                families.ahead.take(sequence)
                sequence.held[0] = fill.kv
            if first := sequence.held.get(0):
                sequence.kv.names = first.names  # the joined context begins so, and may be found again
            for kv in sequence.held.values():
                core.drop(kv)
            sequence.held.clear()


def _facts(family: Family, holders: list[Sequence]) -> FamilyFacts:
    return FamilyFacts(
        key=str(family.number),
        priority=0,
        arrival=float(family.number),
        num_blocks=_num_held(holders),
        written=family.done,
    )


def _num_held(holders: list[Sequence]) -> int:
    return sum(len(s.kv.blocks) for s in holders)


def _holders(sequence: Sequence) -> list[Sequence]:
    """Those of a tree that wait with KV."""
    found = [h for t in sequence.threads for h in _holders(t)]
    waits = sequence.state in (State.WAITING, State.PARKED)
    if waits and (sequence.kv.computed or sequence.held or sequence.fill):
        found.insert(0, sequence)
    return found
