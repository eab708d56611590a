"""What families have used so far, as the engine's ``AdmissionGate`` counts it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from itertools import chain

from forkjoin_bench.simulator.replica.core import Core
from forkjoin_bench.simulator.replica.sequence import Family, Kv, Sequence
from forkjoin_scheduler.policy.admission import Need


def needs(core: Core, families: Iterable[Family]) -> list[Need]:
    """Those of each of ``families``."""
    fills: dict[Family, list[Sequence]] = defaultdict(list)
    for sequence in chain(core.begun, core.running):
        if sequence.is_fill:
            fills[sequence.family].append(sequence)
    return [_need(core, family, fills[family]) for family in families]


def _need(core: Core, family: Family, fills: list[Sequence]) -> Need:
    last = core.step - 1  # the step that is being scheduled has written nothing yet
    sequences = list(family.sequences.values())
    held: list[Kv] = [kv for s in sequences for kv in s.held.values()]
    tables = [s.kv.blocks for s in (*sequences, *fills)] + [kv.blocks for kv in held]
    lost = sum(s.tokens - s.fork_len for s in sequences if not s.kv.blocks)
    return Need(
        family.generated(last),
        family.widest,
        family.critical(last),
        core.pool.num_freed_with(tables),
        lost=lost / core.engine.block_size,
        ended_threads=0 if family.machine is None else family.machine.family.num_ended_threads,
    )
