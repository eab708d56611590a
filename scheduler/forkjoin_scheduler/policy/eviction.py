"""Which family gives its KV blocks back where they are short.

vLLM preempts what runs. A family whose threads wait with blocks is no victim of that: a pool full of such
blocks would wait forever, and with some of them others lose blocks that they could use. So a family gives
way where nothing runs, and, if it only waits, before older ones lose blocks that they run on. What it gives
back is recomputed when it runs again; its answer is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True)
class FamilyFacts:
    """A family that holds blocks, none of whose requests runs."""

    key: str
    #: The smaller, the more urgent; 0 unless the server schedules by priority.
    priority: int = 0
    #: When its request came, in seconds: only the order counts.
    arrival: float = 0.0
    #: KV blocks that return to the pool if it gives way. 0: others share all that it holds.
    num_blocks: int = 0
    #: Tokens that it has generated, all threads together.
    written: int = 0


@runtime_checkable
class EvictionPolicy(Protocol):
    """Decides which family gives way."""

    def choose(self, facts: Sequence[FamilyFacts]) -> str:
        """The key of one of these families, of which there is at least one."""
        ...


class LastCome:
    """The least urgent; of several, the one that came last. So what has begun first is finished first."""

    def choose(self, facts: Sequence[FamilyFacts]) -> str:
        """The key of that family."""
        return max(facts, key=lambda family: (family.priority, family.arrival)).key
