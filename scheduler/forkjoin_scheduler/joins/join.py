"""What every kind of join has in common: its fields, and what it does unless the kind says otherwise.

A kind is a subclass in a file of its own. Its ``kind`` names it in dialect files; what it adds to the
fields, and what it does otherwise, stands there and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from forkjoin_scheduler.dialects.strict import Strict
from forkjoin_scheduler.joins import joined

if TYPE_CHECKING:
    from forkjoin_scheduler.dialects.dialect import Dialect, Positions
    from forkjoin_scheduler.dialects.tokenizer import Tokenizer
    from forkjoin_scheduler.families.family import Branch
    from forkjoin_scheduler.families.fork import ThreadPlan
    from forkjoin_scheduler.joins.joined import JoinPlan


class Join(Strict):
    """How the threads come together, and what follows them."""

    #: Whether the branch that forked stands still until its threads have ended.
    waits: ClassVar[bool] = True
    #: Whether the answer shows the threads as they run; otherwise only what they return.
    shows_threads: ClassVar[bool] = True
    #: Whether the branch that forked decodes on after its threads.
    goes_on: ClassVar[bool] = True
    #: Whether each thread is an answer of its own, with all that a request asks of its answer.
    threads_are_answers: ClassVar[bool] = False
    #: Whether what threads return makes a new prompt, after which the request forks again, or answers.
    asks_again: ClassVar[bool] = False
    #: Whether threads end with the branch that forked, where that did not wait for them.
    threads_end_with_parent: ClassVar[bool] = True
    #: Whether what asks for threads asks for one, by its number.
    asks_by_number: ClassVar[bool] = False
    #: Whether joins move the threads' KV instead of computing it.
    moves_kv: ClassVar[bool] = False
    #: Whether the branch that forked may fork again after its threads, for those that depend on them.
    goes_in_stages: ClassVar[bool] = False
    #: Whether threads that have ended may be prefilled one after another while slower ones run.
    prefills_ahead: ClassVar[bool] = False

    kind: str
    when: Literal["all", "first"] = Field(
        default="all", description="whether all threads run to their end, or the first cuts the others off"
    )
    text: str = Field(
        default="", description="injected after the last thread; in a file, a template of the turns only"
    )
    opened: str = Field(default="", description="injected before the first thread")
    between_stages: str = Field(
        default="",
        description="injected in its place after a stage of threads, if another one follows",
    )
    close_block: str = Field(
        default="", description="injected in its place when the request ends at the join"
    )

    @property
    def further_widths(self) -> Sequence[int]:
        """How many threads each round after the first has."""
        return ()

    @property
    def question(self) -> str | None:
        """The regex of what asks for threads, with their ``number`` if for one; None: nothing does."""
        return None

    @property
    def ballot(self) -> str | None:
        """The regex of what a thread votes for; None: threads do not vote."""
        return None

    @property
    def newlines_behind(self) -> int:
        """Newlines that what follows a fork begins with in the answer."""
        return 0

    def check(self, dialect: Dialect) -> None:
        """Raise ValueError where ``dialect`` wants what this kind of join does not do."""
        if dialect.thread.newlines:
            raise ValueError("expected newlines only with the kind splice: what is joined stays as it is")

    def check_stages(self, dialect: Dialect) -> None:
        """Raise ValueError where threads of ``dialect`` could not see what they depend on."""
        if not self.goes_in_stages or self.when == "first" or dialect.thread.context == "header":
            raise ValueError(
                "expected outlines that name dependencies ('depends') only with the kind reprefill or "
                "stitch, with threads that see their parent, and all of which come to their end"
            )
        if self.opened:
            raise ValueError(
                "expected no join.opened where outlines name dependencies: stages stand in a row"
            )

    def check_tokens(self, dialect: Dialect, tokenizer: Tokenizer) -> None:
        """Raise DialectError where the texts of ``dialect`` do not do as its tokenizer writes them."""

    def plan(
        self,
        dialect: Dialect,
        threads: Sequence[Branch],
        context: Sequence[int],
        tokenizer: Tokenizer,
        closing_ids: Sequence[int] | None = None,
    ) -> JoinPlan:
        """How a branch with this ``context`` goes on behind ``threads`` (in outline order, all ended).

        ``closing_ids``: what the request itself wants after them, in the place of the dialect's own text.
        """
        return joined.plan_join(dialect, threads, tokenizer, closing_ids)

    def left_out_first(
        self, dialect: Dialect, threads: Sequence[Branch], tokenizer: Tokenizer
    ) -> Sequence[Branch]:
        """Which ``threads`` may be left out if all don't fit, in this order; none: all are needed."""
        return ()

    def shown_ids(self, plan: JoinPlan) -> Sequence[int]:
        """What the answer shows of a join, whose threads it may have shown as they ran."""
        return plan.closing_ids if self.shows_threads else plan.token_ids

    def asked_for(
        self, branch: Branch, number: str, numbered: Mapping[tuple[Branch, str], Branch]
    ) -> list[Branch]:
        """The threads that ``branch`` waits for, which has asked for ``number``; none: it knows of none.

        ``numbered``: the threads of the family, by parent and number.
        """
        return []

    def is_planned(self, number: str, planned: Iterable[ThreadPlan]) -> bool:
        """Whether it will know of some when the threads that are ``planned`` in this step have started."""
        return False

    def keeps_blocks_of(self, dialect: Dialect, thread: Branch) -> bool:
        """Whether the join takes the KV blocks of ``thread``, which has ended, as they are."""
        return False

    def num_closing_tokens(self, dialect: Dialect, tokenizer: Tokenizer) -> int:
        """Tokens that a thread's context must still hold after what it writes."""
        return 0

    def thread_offset(self, parent_offset: int, positions: Positions) -> int:
        """The positions of threads less their slots, whose parent has ``parent_offset`` at the fork."""
        return 0
