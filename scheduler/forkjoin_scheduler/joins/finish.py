"""The answer is the threads' text one after the other, and ends there."""

from __future__ import annotations

from typing import ClassVar, Literal

from forkjoin_scheduler.joins.join import Join


class Finish(Join):
    """A finish: nothing is read by the parent, nothing joined in its context."""

    goes_on: ClassVar[bool] = False

    kind: Literal["finish"] = "finish"
