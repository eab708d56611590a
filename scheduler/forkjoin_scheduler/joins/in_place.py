"""The parent does not wait; where it writes the sync, each open thread's text stands where it was started."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from forkjoin_scheduler.joins import joined
from forkjoin_scheduler.joins.sync import Sync

if TYPE_CHECKING:
    from forkjoin_scheduler.dialects.dialect import Dialect
    from forkjoin_scheduler.dialects.tokenizer import Tokenizer
    from forkjoin_scheduler.families.family import Branch
    from forkjoin_scheduler.joins.joined import JoinPlan


class InPlace(Sync):
    """A sync of all, after which the parent's context is its own text with the threads' in their places.

    That is the answer, too. Threads that nothing waits for go on when their parent has ended.
    """

    shows_threads: ClassVar[bool] = True
    threads_end_with_parent: ClassVar[bool] = False

    kind: Literal["in_place"]  # type: ignore[assignment]

    def check(self, dialect: Dialect) -> None:
        super().check(dialect)
        thread = dialect.thread
        if thread.context == "header" or thread.without_trigger or thread.returns or self.opened:
            raise ValueError(
                "expected threads that see their parent, trigger included, with no returns or opened: with "
                "the kind in_place all of a thread stands where it was started"
            )

    def plan(
        self,
        dialect: Dialect,
        threads: Sequence[Branch],
        context: Sequence[int],
        tokenizer: Tokenizer,
        closing_ids: Sequence[int] | None = None,
    ) -> JoinPlan:
        """From the first open thread's place on, what its parent wrote and the threads, as they follow."""
        plan = super().plan(dialect, threads, context, tokenizer, closing_ids)
        keep = at = threads[0].fork_len
        token_ids: list[int] = []
        for thread in threads:
            token_ids += context[at : thread.fork_len]
            token_ids += joined.joined_ids(dialect, thread, tokenizer)
            at = thread.fork_len
        token_ids += context[at:]
        return joined.JoinPlan((*token_ids, *plan.closing_ids), plan.closing_ids, plan.end, keep)
