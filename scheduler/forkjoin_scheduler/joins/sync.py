"""The parent does not wait; where it writes the sync, all threads that it has started since return."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from forkjoin_scheduler.dialects.patterns import NonEmpty
from forkjoin_scheduler.joins.join import Join

if TYPE_CHECKING:
    from forkjoin_scheduler.families.family import Branch
    from forkjoin_scheduler.families.fork import ThreadPlan


class Sync(Join):
    """A sync of all: the parent stands still until each of its open threads has ended."""

    waits: ClassVar[bool] = False
    shows_threads: ClassVar[bool] = False

    kind: Literal["sync"]
    sync: NonEmpty = Field(description="the text that waits for all threads that are not joined yet")

    @property
    def question(self) -> str | None:
        return re.escape(self.sync)

    def asked_for(
        self, branch: Branch, number: str, numbered: Mapping[tuple[Branch, str], Branch]
    ) -> list[Branch]:
        return [thread for fork in branch.forks[branch.num_joined :] for thread in fork]

    def is_planned(self, number: str, planned: Iterable[ThreadPlan]) -> bool:
        return any(True for _ in planned)
