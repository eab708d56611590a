"""When the engines last showed that they live, and whether that is too long ago. Times are of one clock."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Pulse:
    """The signs of life of a server's engines: answers to questions, and outputs that are taken.

    Every engine has to have answered: requests to one that does not would wait forever.
    """

    started_s: float
    #: When all engines had answered last; None before the first time.
    _answered_s: float | None = None
    #: When last no output waited to be taken, or another had been.
    _taken_s: float | None = None
    _num_taken: int = 0

    def answered(self, now_s: float) -> None:
        """All engines have answered."""
        self._answered_s = now_s

    def saw_outputs(self, now_s: float, *, num_taken: int, num_waiting: int) -> None:
        """``num_taken`` outputs were taken so far, and ``num_waiting`` wait for that."""
        if num_waiting == 0 or num_taken != self._num_taken:
            self._taken_s, self._num_taken = now_s, num_taken

    @property
    def has_begun(self) -> bool:
        """Whether all engines have answered once."""
        return self._answered_s is not None

    def silence(self, now_s: float, limit_s: float) -> str | None:
        """What has not happened for longer than ``limit_s``, None if all has."""
        since = {
            "the engine has not answered": self._answered_s,
            "no output of the engine was taken": self._taken_s,
        }
        for what, last_s in since.items():
            silent_s = now_s - (self.started_s if last_s is None else last_s)
            if silent_s > limit_s:
                return f"{what} for {silent_s:.0f} s"
        return None
