"""Far more at once than there is room for, some of whom never read: ``forkjoin bench overload``, small."""

from __future__ import annotations

import pytest

from forkjoin_bench.overload.plan import Plan
from forkjoin_bench.overload.result import problems
from forkjoin_bench.overload.run import run

pytestmark = pytest.mark.server

PLAN = Plan(
    requests=100,
    stalled=10,
    cancelled=5,
    max_tokens=60,
    limit_s=600,
    health_s=10,  # what a liveness probe waits in deploy/: the machine has other tests to run
    flags=("--max-queued-families", "40", "--client-stall-s", "5"),
)


def test_every_request_is_accounted_for_and_nothing_else_suffers(tmp_path):
    result = run(PLAN, tmp_path)
    assert problems(PLAN, result) == []
    assert result.outcomes["refused"] > 0
    assert result.forked > 0
    assert 1 <= result.retry_after_s["min"] <= result.retry_after_s["max"] <= 60
