"""The parent does not wait; the threads' text is spliced into the answer, nothing returns."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from forkjoin_scheduler.joins.join import Join

if TYPE_CHECKING:
    from forkjoin_scheduler.dialects.dialect import Dialect


class Splice(Join):
    """A splice: parent and threads go on beside each other, and none sees another."""

    waits: ClassVar[bool] = False
    threads_end_with_parent: ClassVar[bool] = False

    kind: Literal["splice"]
    newlines: int = Field(
        default=0, ge=0, description="newlines that what follows a fork begins with in the answer"
    )

    @property
    def newlines_behind(self) -> int:
        return self.newlines

    def check(self, dialect: Dialect) -> None:
        """All of it can be spliced."""
