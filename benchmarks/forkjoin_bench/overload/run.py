"""Start a server, overload it, and say what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from pathlib import Path

from forkjoin_bench.overload.clients import ask_all, warm_up
from forkjoin_bench.overload.plan import Plan
from forkjoin_bench.overload.probe import Seen, watching
from forkjoin_bench.overload.result import OUTCOMES, Result, spread
from forkjoin_bench.overload.server import serving, what_is_left
from forkjoin_bench.overload.told import Told
from forkjoin_bench.progress import working


def run(plan: Plan, folder: Path) -> Result:
    """Overload a server once; its log goes to ``folder``. Raises UsageError if it does not start.

    Of a server that has ended nothing is known to be left: an empty ``left``.
    """
    log = folder / f"{plan.name.split()[0]}.log"
    with serving(plan, log) as (port, pid):
        asyncio.run(warm_up(plan, port))
        began = time.monotonic()
        with watching(port, pid) as seen:
            with working(plan.name, plan.requests) as work:
                told = asyncio.run(ask_all(plan, port, work.done))
            wall_s = time.monotonic() - began
            left = {}
            with contextlib.suppress(ConnectionError):  # it has ended
                left = what_is_left(port)
        num_tracebacks = log.read_text(errors="replace").count("Traceback")
    return _result(told, seen, left, num_tracebacks, wall_s)


def _result(
    told: list[Told], seen: Seen, left: dict[str, float], num_tracebacks: int, wall_s: float
) -> Result:
    counts = Counter(t.outcome for t in told)
    return Result(
        outcomes={outcome: counts[outcome] for outcome in OUTCOMES},
        statuses={str(k): n for k, n in sorted(Counter(t.status for t in told).items())},
        forked=sum(t.has_forked for t in told),
        first_token_s=spread([t.first_s for t in told if t.outcome == "finished"]),
        finished_s=spread([t.over_s for t in told if t.outcome == "finished"]),
        refused_s=spread([t.over_s for t in told if t.outcome == "refused"]),
        retry_after_s=spread([t.retry_after_s for t in told]),
        health_s=spread(list(seen.health_s)),
        num_health_failed=seen.num_failed,
        memory_mib=seen.memory_mib,
        left=left,
        num_tracebacks=num_tracebacks,
        wall_s=round(wall_s, 1),
    )
