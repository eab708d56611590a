"""A dialect by its numbers: what machines need of one, where nothing is written but counted."""

from __future__ import annotations

from functools import cache

from forkjoin_bench.simulator.workload import Spoken
from forkjoin_scheduler.dialects.bound import BoundDialect
from forkjoin_scheduler.dialects.dialect import Dialect, ForkAt, Thread
from forkjoin_scheduler.families.fork import ForkPlan, ThreadPlan
from forkjoin_scheduler.joins.kinds import make_join

_END = "</thread>"


class CountingTokenizer:
    """Each character is a token, and all tokens are alike."""

    def encode(self, text: str) -> list[int]:
        return [0] * len(text)

    def decode(self, ids: list[int]) -> str:
        return " " * len(ids)

    def token_id(self, token: str) -> int | None:
        return 0

    def turns(self) -> tuple[str, str, str] | None:
        return None


TOKENIZER = CountingTokenizer()


@cache
def bound(spoken: Spoken, widths: tuple[int, ...] = ()) -> BoundDialect:
    """The dialect that injects so many tokens, and joins so. ``widths``: of each round, if it asks again."""
    dialect = _of_rounds(spoken, widths) if spoken.asks_again else _of_triggers(spoken)
    return BoundDialect.bind(dialect, TOKENIZER)


def _of_triggers(spoken: Spoken) -> Dialect:
    return Dialect(
        name="simulated",
        source="the simulator",
        trigger="<fork>",
        width=1,
        thread=Thread(header="h" * spoken.header, joined_header="h" * spoken.joined_header, end=_END),
        join=make_join(
            kind="stitch" if spoken.is_stitched else "reprefill",
            text="j" * spoken.join,
            between_stages="b" * spoken.between_stages,
        ),
        max_depth=1024,
    )


def _of_rounds(spoken: Spoken, widths: tuple[int, ...]) -> Dialect:
    return Dialect(
        name="simulated rounds",
        source="the simulator",
        fork_at=ForkAt.PROMPT,
        width=widths[0],
        thread=Thread(header="h" * spoken.header, returns=r"\A(?P<result>[\s\S]*)"),
        join=make_join(
            kind="rounds",
            then=widths[1:],
            prompt="j" * spoken.join + "{prompt}{references}",
            reference="r" * spoken.joined_header + "{returned}",
        ),
    )


@cache
def plan(spoken: Spoken, stages: tuple[int, ...]) -> ForkPlan:
    """A fork into so many threads of each stage. Of the first the whole header stands in the joined context.

    Threads of later stages begin as joined ones do.
    """
    header, joined = (0,) * spoken.header, (0,) * spoken.joined_header
    end = None if spoken.asks_again else _END
    first = (ThreadPlan(str(n), "", header, joined if n else header, end) for n in range(stages[0]))
    later = (ThreadPlan(str(n), "", joined, joined, end) for n in range(stages[0], sum(stages)))
    return ForkPlan((*first, *later), 0, stages=stages)
