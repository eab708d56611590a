"""An admission that knows what every request will write, which no policy can.

It says how much better expectations could gain, before anybody looks for them.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import zip_longest

from forkjoin_bench.simulator.costs import Linear
from forkjoin_bench.simulator.engine import Engine
from forkjoin_bench.simulator.gates import Greedy, Running
from forkjoin_bench.simulator.replica.replica import Replica
from forkjoin_bench.simulator.workload import Request, Spoken, peak_tokens
from forkjoin_scheduler.policy.admission import Need, Room


class Foreseen(Greedy):
    """Admits in their order what fits in every step to come, if nothing that runs is ever held up."""

    def __init__(self, spoken: Spoken) -> None:
        self._spoken = spoken

    def admits(self, new: Need, request: Request, running: Running, room: Room) -> bool:
        """Whether what runs and ``request`` never take more blocks than are free now."""
        if not running.num:
            return True
        held = self._held(request, room)
        taken = [(*held, 0), *(self._yet_taken(*plan, room) for plan in running.plans())]
        ends = [of_one[-1] for of_one in taken]
        steps = zip_longest(*taken)
        most = max(sum(e if t is None else t for t, e in zip(step, ends, strict=True)) for step in steps)
        return most <= room.num_free

    def _yet_taken(self, request: Request, num_steps: int, room: Room) -> tuple[int, ...]:
        """Blocks that it takes beyond what it has in this step: in each to come, and at its end."""
        held = self._held(request, room)[num_steps:] or (0,)  # one that is late ends at once
        return (*(blocks - held[0] for blocks in held), -held[0])

    def _held(self, request: Request, room: Room) -> tuple[int, ...]:
        alone = replace(request, arrival=0.0, session=0, shared=0)
        return held_alone(alone, self._spoken, room.tokens_per_block)


@cache
def held_alone(request: Request, spoken: Spoken, block_size: int) -> tuple[int, ...]:
    """KV blocks that ``request`` holds behind each of its steps, where it runs alone."""
    plenty = 2 * peak_tokens(request, spoken) // block_size + 1024
    replica = Replica(Engine(plenty, block_size, spoken=spoken, cost=Linear(1.0), gate=Greedy))
    replica.submit(request)
    held = []
    while replica.num_unfinished:
        replica.run(until=replica.core.now + 0.5)
        held.append(plenty - replica.core.pool.num_free)
    return tuple(held)
