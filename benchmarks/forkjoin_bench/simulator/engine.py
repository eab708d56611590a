"""What a simulated engine is: its size, what its steps take, and its policies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from forkjoin_bench.simulator.costs import MULTIVERSE, Cost
from forkjoin_bench.simulator.gates import FamilyAware, Gate
from forkjoin_bench.simulator.workload import THREADWEAVER, Spoken
from forkjoin_scheduler.policy.threads import Eager, ThreadPolicy


@dataclass(frozen=True)
class Engine:
    """Settings of a replica; ``gate`` and ``policy`` make one for each.

    ``slo_itl``: seconds a token, for a policy that protects streams (``Slack``); None: none is.

    ``drafted``: tokens that each decoding sequence verifies beside its own; ``tokens_a_step``: what it
    gets of a step. Drafts count as this mean: each sequence gets the same of each step.
    """

    num_blocks: int
    block_size: int = 16
    max_num_seqs: int = 256
    max_batched_tokens: int = 8192
    join_ahead_tokens: int = 128
    spoken: Spoken = THREADWEAVER
    cost: Cost = MULTIVERSE
    gate: Callable[[], Gate] = FamilyAware
    policy: Callable[[], ThreadPolicy] = field(default=Eager)
    slo_itl: float | None = None
    drafted: int = 0
    tokens_a_step: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.tokens_a_step <= 1 + self.drafted:
            raise ValueError(
                f"tokens_a_step: expected 1 to 1 + drafted ({1 + self.drafted}), got {self.tokens_a_step:g}"
            )
        if self.max_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_batched_tokens: expected at least max_num_seqs ({self.max_num_seqs}), "
                f"got {self.max_batched_tokens}: decoding sequences share no step's budget here"
            )
