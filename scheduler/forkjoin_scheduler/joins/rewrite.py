"""The call that forked is replaced by what the threads return, in the parent's context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from forkjoin_scheduler.dialects.patterns import NonEmpty
from forkjoin_scheduler.joins import joined
from forkjoin_scheduler.joins.join import Join

if TYPE_CHECKING:
    from forkjoin_scheduler.dialects.dialect import Dialect
    from forkjoin_scheduler.dialects.tokenizer import Tokenizer
    from forkjoin_scheduler.families.family import Branch
    from forkjoin_scheduler.joins.joined import JoinPlan


class Rewrite(Join):
    """A rewrite: the parent never sees its own call again."""

    shows_threads: ClassVar[bool] = False

    kind: Literal["rewrite"]
    opens: NonEmpty = Field(description="the text that begins the call; it and all after it are replaced")

    def plan(
        self,
        dialect: Dialect,
        threads: Sequence[Branch],
        context: Sequence[int],
        tokenizer: Tokenizer,
        closing_ids: Sequence[int] | None = None,
    ) -> JoinPlan:
        """In the place of the call at the end of ``context`` that started ``threads``."""
        plan = super().plan(dialect, threads, context, tokenizer, closing_ids)
        keep, before = joined.cut_last(self.opens, context, tokenizer)
        return joined.JoinPlan((*before, *plan.token_ids), plan.closing_ids, plan.end, keep)
