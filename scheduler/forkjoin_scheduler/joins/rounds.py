"""What threads return makes a new prompt, for the threads of the next round, at last for one answer."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from forkjoin_scheduler.dialects.last_turn import LastTurn
from forkjoin_scheduler.dialects.patterns import fill, has_known_fields
from forkjoin_scheduler.joins import joined
from forkjoin_scheduler.joins.join import Join

if TYPE_CHECKING:
    from forkjoin_scheduler.dialects.dialect import Dialect
    from forkjoin_scheduler.dialects.tokenizer import Tokenizer
    from forkjoin_scheduler.families.family import Branch
    from forkjoin_scheduler.joins.joined import JoinPlan


def _asks(template: str) -> str:
    has_known_fields(template, known=("prompt", "references"))
    if template.count("{prompt}") != 1:
        raise ValueError("expected the field {prompt} once")
    return template


def _refers(template: str) -> str:
    return has_known_fields(template, known=("n", "returned"))


class Rounds(Join):
    """Rounds of answers, of which the request's shows the last alone."""

    shows_threads: ClassVar[bool] = False
    threads_are_answers: ClassVar[bool] = True
    asks_again: ClassVar[bool] = True

    kind: Literal["rounds"]
    then: tuple[Annotated[int, Field(ge=1, le=1024)], ...] = Field(
        default=(),
        description="threads of each round after the first, which has `width`; one answer follows",
    )
    prompt: Annotated[str, AfterValidator(_asks)] = Field(
        description="what stands in the place of the last user's text: a template with {prompt}, which is "
        "that text, and {references}"
    )
    reference: Annotated[str, AfterValidator(_refers)] = Field(
        description="one of the references: a template with {n}, from 1, and {returned}"
    )
    shuffled_by: int | None = Field(
        default=None,
        description="the seed by which references, in order of length, are shuffled; none: threads' order",
    )

    @property
    def further_widths(self) -> Sequence[int]:
        return self.then

    def check(self, dialect: Dialect) -> None:
        super().check(dialect)
        thread = dialect.thread
        if dialect.fork_at != "prompt" or thread.returns is None or thread.context != "parent":
            raise ValueError(
                "expected fork_at: prompt, thread.returns and threads that see their parent, with the kind "
                "rounds"
            )
        if dialect.answer is not None and dialect.answer.behind_join:
            raise ValueError("expected no answer.behind_join with the kind rounds: each round is of answers")
        if self.opened or self.text or self.close_block:
            raise ValueError("expected no opened, text or close_block with the kind rounds: it has a prompt")

    def shown_ids(self, plan: JoinPlan) -> Sequence[int]:
        """Nothing: a prompt is no part of an answer."""
        return ()

    def plan(
        self,
        dialect: Dialect,
        threads: Sequence[Branch],
        context: Sequence[int],
        tokenizer: Tokenizer,
        closing_ids: Sequence[int] | None = None,
    ) -> JoinPlan:
        """The prompt of the next round. ``context``: the request's own prompt."""
        texts = [_returned(dialect, wrote) for wrote in self._in_order(threads, tokenizer)]
        numbered = [fill(self.reference, n=str(n), returned=text) for n, text in enumerate(texts, 1)]
        before, _, behind = self.prompt.partition("{prompt}")
        before, behind = (fill(part, references="".join(numbered)) for part in (before, behind))
        turn = LastTurn.of(context, tokenizer)
        return joined.JoinPlan(turn.with_text(before, behind, tokenizer), (), None, turn.keep)

    def left_out_first(
        self, dialect: Dialect, threads: Sequence[Branch], tokenizer: Tokenizer
    ) -> Sequence[Branch]:
        """Those that return most, and never the last."""
        lengths = {t: len(_returned(dialect, tokenizer.decode(joined.written(t)))) for t in threads}
        return sorted(threads, key=lengths.__getitem__, reverse=True)[:-1]

    def _in_order(self, threads: Sequence[Branch], tokenizer: Tokenizer) -> list[str]:
        """What ``threads`` wrote, in the order of the references.

        One that wrote nothing has a place in it before it is left out, as in the published client.
        """
        wrote = [tokenizer.decode(joined.written(thread)) for thread in threads]
        if self.shuffled_by is not None:
            wrote.sort(key=len)
            random.Random(self.shuffled_by).shuffle(wrote)
        return [text for text in wrote if text]


def _returned(dialect: Dialect, wrote: str) -> str:
    assert dialect.thread.returns is not None
    return joined.last_match(dialect.thread.returns, wrote) or ""
