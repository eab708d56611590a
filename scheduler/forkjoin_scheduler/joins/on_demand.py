"""The parent does not wait; what a thread returns is inserted where the parent asks for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from forkjoin_scheduler.dialects.patterns import check_regex
from forkjoin_scheduler.joins.join import Join

if TYPE_CHECKING:
    from forkjoin_scheduler.families.family import Branch
    from forkjoin_scheduler.families.fork import ThreadPlan


def _asks(value: str) -> str:
    return check_regex(value, needs=("number",))


class OnDemand(Join):
    """On demand: the parent stands still where it asks for a thread that has not ended."""

    waits: ClassVar[bool] = False
    shows_threads: ClassVar[bool] = False
    asks_by_number: ClassVar[bool] = True

    kind: Literal["on_demand"]
    ask: Annotated[str, AfterValidator(_asks)] = Field(
        description="regex of the text that asks for a thread, with a group 'number'"
    )

    @property
    def question(self) -> str | None:
        return self.ask

    def asked_for(
        self, branch: Branch, number: str, numbered: Mapping[tuple[Branch, str], Branch]
    ) -> list[Branch]:
        """The one of that number."""
        thread = numbered.get((branch, number))
        return [] if thread is None else [thread]

    def is_planned(self, number: str, planned: Iterable[ThreadPlan]) -> bool:
        return any(thread.number == number for thread in planned)
