"""Nothing runs and nothing could start: a family gives back what it waits with."""

from __future__ import annotations

from forkjoin_bench.simulator.replica.core import Core
from forkjoin_bench.simulator.replica.families import Families
from forkjoin_bench.simulator.replica.sequence import Cause, Family, Role, Sequence, State
from forkjoin_scheduler.policy.eviction import FamilyFacts, LastCome


class Relief:
    """Takes back the blocks of families. Keeps nothing."""

    def __init__(self, core: Core, families: Families) -> None:
        self._core, self._families = core, families

    def relieve(self) -> None:
        """Take back what the family waits with that the scheduler's policy chooses.

        Raises RuntimeError where no family waits with anything.
        """
        core = self._core
        core.counts.num_evicted += 1
        closing = [s for s in core.begun if s.role is Role.CLOSE and s.kv.computed]
        holding = {f: _holders(f.root) + [s for s in closing if s.family is f] for f in core.families}
        by_key = {str(f.number): f for f, holders in holding.items() if holders}
        if not by_key:
            raise RuntimeError(
                f"expected every request to fit into {core.engine.num_blocks} blocks, one does not: "
                "simulate an engine with more"
            )
        victim = by_key[LastCome().choose([_facts(f, holding[f]) for f in by_key.values()])]
        self._evict(holding[victim])

    def _evict(self, holders: list[Sequence]) -> None:
        core, families = self._core, self._families
        for sequence in holders:
            families.stitching.drop(sequence)
            core.drop(sequence.kv)
            if fill := sequence.fill:
                families.ahead.take(sequence)
                core.drop(fill.kv)
            for kv in sequence.held.values():
                core.drop(kv)
            sequence.held.clear()
            if sequence.state is State.WAITING:
                core.begun.remove(sequence)
                sequence.cause = Cause.RECOMPUTED
                core.queue(sequence)


def _facts(family: Family, holders: list[Sequence]) -> FamilyFacts:
    return FamilyFacts(
        key=str(family.number),
        priority=0,
        arrival=float(family.number),
        num_blocks=sum(len(s.kv.blocks) for s in holders),
        written=family.done,
    )


def _holders(sequence: Sequence) -> list[Sequence]:
    """Those of a tree that wait with KV."""
    found = [h for t in sequence.threads for h in _holders(t)]
    waits = sequence.state in (State.WAITING, State.PARKED)
    if waits and (sequence.kv.computed or sequence.held or sequence.fill):
        found.insert(0, sequence)
    return found
