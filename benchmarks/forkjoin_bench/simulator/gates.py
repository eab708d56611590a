"""Which new requests may start: greedily, as the scheduler's own admission says, or at most so many."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from forkjoin_scheduler.policy.admission import Admission, Need, Room


class Gate(Protocol):
    """Keeps requests that may fork waiting."""

    def admits(self, new: Need, running: Callable[[], Sequence[Need]], num_running: int, room: Room) -> bool:
        """Whether one more may start beside ``running``, which counts them."""
        ...

    def learn(self, need: Need) -> None:
        """One has ended."""


class Greedy:
    """All, as vLLM does."""

    def admits(self, new: Need, running: Callable[[], Sequence[Need]], num_running: int, room: Room) -> bool:
        """Always."""
        return True

    def learn(self, need: Need) -> None:
        """It does not."""


@dataclass
class AtMost(Greedy):
    """A fixed number of families at a time, set by hand."""

    num_families: int

    def admits(self, new: Need, running: Callable[[], Sequence[Need]], num_running: int, room: Room) -> bool:
        """As long as there are fewer."""
        return num_running < self.num_families


class FamilyAware:
    """``policy.admission``, asked as ``vllm_seam/starts/admission_gate.py`` does."""

    def __init__(self, admission: Admission | None = None) -> None:
        self.admission = admission or Admission()
        self.learn = self.admission.learn

    def admits(self, new: Need, running: Callable[[], Sequence[Need]], num_running: int, room: Room) -> bool:
        """What the policy says; it counts nothing where that does not matter."""
        return (
            not num_running or not self.admission.is_due(new) or self.admission.admits(new, running(), room)
        )
