"""Which new requests may start: greedily, as the scheduler's own admission says, or at most so many."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from forkjoin_bench.simulator.workload import Request
from forkjoin_scheduler.policy.admission import Admission, Need, Room


@dataclass(frozen=True)
class Running:
    """What runs beside a new request. A server knows ``num`` and ``needs``, which counts what each has used.

    ``plans`` are what nobody can know: what each will write, and how many steps ago it was admitted.
    """

    num: int
    needs: Callable[[], Sequence[Need]]
    plans: Callable[[], Sequence[tuple[Request, int]]]


class Gate(Protocol):
    """Keeps requests that may fork waiting.

    ``asks_again``: whether a family that has lost blocks is asked for as a new one, and, while it only waits,
    gives way to older ones.
    """

    asks_again: ClassVar[bool]

    def admits(self, new: Need, request: Request, running: Running, room: Room) -> bool:
        """Whether ``request``, which needs ``new`` as far as it says, may start beside ``running``."""
        ...

    def learn(self, need: Need) -> None:
        """One has ended."""


class Greedy:
    """All, as vLLM does."""

    asks_again: ClassVar[bool] = False

    def admits(self, new: Need, request: Request, running: Running, room: Room) -> bool:
        """Always."""
        return True

    def learn(self, need: Need) -> None:
        """It does not."""


@dataclass
class AtMost(Greedy):
    """A fixed number of families at a time, set by hand."""

    num_families: int

    def admits(self, new: Need, request: Request, running: Running, room: Room) -> bool:
        """As long as there are fewer."""
        return running.num < self.num_families


class FamilyAware:
    """``policy.admission``, asked as ``vllm_seam/starts/admission_gate.py`` does."""

    asks_again: ClassVar[bool] = True

    def __init__(self, admission: Admission | None = None) -> None:
        self.admission = admission or Admission()
        self.learn = self.admission.learn

    def admits(self, new: Need, request: Request, running: Running, room: Room) -> bool:
        """What the policy says; it counts nothing where that does not matter."""
        is_free = not running.num or not self.admission.is_due(new)
        return is_free or self.admission.admits(new, running.needs(), room)
