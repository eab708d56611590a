"""The parent's context goes on as the concatenation of the threads, prefilled linearly."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from forkjoin_scheduler.joins.join import Join

if TYPE_CHECKING:
    from forkjoin_scheduler.dialects.dialect import Dialect
    from forkjoin_scheduler.families.family import Branch


class Reprefill(Join):
    """A re-prefill: what follows sees all tokens of all threads, in a row."""

    prefills_ahead: ClassVar[bool] = True
    goes_in_stages: ClassVar[bool] = True

    kind: Literal["reprefill"] = "reprefill"

    def keeps_blocks_of(self, dialect: Dialect, thread: Branch) -> bool:
        """The first thread's, where its text is a true prefix of the joined context."""
        plan = thread.plan
        assert plan is not None
        return (
            thread.sibling_index == 0
            and dialect.thread.context == "parent"
            and dialect.thread.returns is None
            and not self.opened
            and plan.header_ids == plan.joined_header_ids
        )
