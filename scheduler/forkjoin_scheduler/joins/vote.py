"""The answer is the first thread whose result most threads have."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from forkjoin_scheduler.dialects.patterns import LinearRegex
from forkjoin_scheduler.joins.join import Join


class VoteJoin(Join):
    """A vote: each thread is an answer, and one of them is the request's."""

    shows_threads: ClassVar[bool] = False
    goes_on: ClassVar[bool] = False
    threads_are_answers: ClassVar[bool] = True

    kind: Literal["vote"] = "vote"
    result: LinearRegex = Field(description="regex whose last match in a thread (group 'result') is its vote")

    @property
    def ballot(self) -> str | None:
        return self.result
