"""What a step takes: published shapes, and fits of recorded steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from forkjoin_scheduler.policy.step_cost import Load, StepCost

#: Seconds of a step.
Cost = Callable[[Load], float]


@dataclass(frozen=True)
class Linear:
    """Seconds of a step, of each sequence in it, of each token that it computes and of each that it reads."""

    base: float
    per_sequence: float = 0.0
    per_token: float = 0.0
    per_context_token: float = 0.0

    def __call__(self, load: Load) -> float:
        return (
            self.base
            + self.per_sequence * load.num_sequences
            + self.per_token * load.num_tokens
            + self.per_context_token * load.num_context
        )


#: Multiverse's shape: at parallelism P a token takes 15.4/P + c ms, so a step of P sequences 15.4 + c·P.
#: Its c is not published as a number; 0.15 ms keeps a batch of 100 below twice an empty step. The prices of
#: prefilled and of read tokens are those of a 32B model that is bound by arithmetic and by memory.
MULTIVERSE = Linear(15.4e-3, 0.15e-3, 0.05e-3, 5e-8)


def fitted(steps: Iterable[tuple[Load, float]]) -> Cost:
    """The scheduler's own model, having seen ``steps`` and the seconds that they took."""
    cost = StepCost()
    for load, seconds in steps:
        cost.observe(load, seconds)
    return cost.predict
