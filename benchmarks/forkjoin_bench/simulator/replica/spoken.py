"""A dialect by its numbers: what machines need of one, where nothing is written but counted."""

from __future__ import annotations

from functools import cache

from forkjoin_bench.simulator.workload import Spoken
from forkjoin_scheduler.dialects.bound import BoundDialect
from forkjoin_scheduler.dialects.dialect import Dialect, Thread
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
def bound(spoken: Spoken) -> BoundDialect:
    """The dialect that injects so many tokens, and joins so."""
    dialect = Dialect(
        name="simulated",
        source="the simulator",
        trigger="<fork>",
        width=1,
        thread=Thread(header="h" * spoken.header, joined_header="h" * spoken.joined_header, end=_END),
        join=make_join(kind="stitch" if spoken.is_stitched else "reprefill", text="j" * spoken.join),
        max_depth=1024,
    )
    return BoundDialect.bind(dialect, TOKENIZER)


@cache
def plan(spoken: Spoken, num_threads: int) -> ForkPlan:
    """A fork into so many threads. Of the first the whole header stands in the joined context."""
    header = (0,) * spoken.header
    joined = (0,) * spoken.joined_header
    threads = (ThreadPlan(str(n), "", header, joined if n else header, _END) for n in range(num_threads))
    return ForkPlan(tuple(threads), 0)
