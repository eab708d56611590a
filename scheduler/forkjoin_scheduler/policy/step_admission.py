"""In which order new requests may start, where some have to wait for room.

One that has to wait keeps those after it waiting that may fork, too: what is big starts in its turn.
Requests that will not fork pass it, but not forever. What has begun and lost its blocks waits before all
that is new.
"""

from __future__ import annotations

from collections.abc import Callable

#: Requests that do not fork may start before one that waits for room, so many times.
MAX_OVERTAKEN = 32
#: So many waiting requests are looked at in a step after one that has to wait: each costs some microseconds.
LOOKED_AT = 16


class StepAdmission:
    """Asked for each new request in the order in which they wait; ``open`` begins a step."""

    def __init__(self) -> None:
        #: Requests kept waiting in this step; all that have lost their blocks count as one.
        self.num_kept = 0
        self._overtaken = 0

    def open(self) -> None:
        """A new step begins."""
        self.num_kept = 0

    @property
    def is_shut(self) -> bool:
        """Whether nobody else need be looked at in this step."""
        is_last_passed = self.num_kept > 0 and self._overtaken >= MAX_OVERTAKEN
        return is_last_passed or self.num_kept >= LOOKED_AT

    def num_could_start(self, num_waiting: int) -> int:
        """How many of ``num_waiting`` requests could have started in the last step, as far as is known."""
        return 0 if self.is_shut else max(num_waiting - self.num_kept, 0)

    def try_readmit(self, has_room: Callable[[], bool]) -> bool:
        """Whether a request that has begun and lost its blocks may go on. It waits before all new ones."""
        if has_room():
            self._overtaken = 0
            return True
        self.num_kept = max(self.num_kept, 1)
        return False

    def try_admit(self, has_room: Callable[[], bool], *, may_fork: bool) -> bool:
        """Whether the next request may start; ``has_room`` is asked for the first that may fork, at most."""
        if self.num_kept == 0 and (not may_fork or has_room()):
            if may_fork:
                self._overtaken = 0
            return True
        if self.num_kept and not may_fork and self._overtaken < MAX_OVERTAKEN:
            self._overtaken += 1
            return True
        self.num_kept += 1
        return False
