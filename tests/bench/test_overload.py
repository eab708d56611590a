from __future__ import annotations

from dataclasses import replace

import pytest

from forkjoin_bench.overload.plan import Plan
from forkjoin_bench.overload.result import Result, problems, spread

PLAN = Plan(requests=10)
GOOD = Result(
    outcomes={"finished": 6, "refused": 3, "failed": 0, "cancelled": 1, "lost": 0},
    health_s={"max": 0.9},
    memory_mib={"engine": {"before": 100, "peak": 500, "after": 400}},
    left={"vllm:num_requests_running": 0.0},
)


def test_what_holds_is_no_problem():
    assert problems(PLAN, GOOD) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"outcomes": GOOD.outcomes | {"refused": 2}}, "expected 10 outcomes, got 9"),
        ({"outcomes": GOOD.outcomes | {"refused": 2, "lost": 1}}, "no request lost, got 1"),
        ({"outcomes": GOOD.outcomes | {"refused": 2, "failed": 1}}, "no request failed, got 1"),
        ({"outcomes": {"refused": 10}}, "expected requests to finish"),
        ({"health_s": {"max": 1.0}}, "/health within"),
        ({"num_health_failed": 1}, "1 failures"),
        ({"num_tracebacks": 2}, "no traceback in the server's log, got 2"),
        ({"memory_mib": {"api": {"before": 100, "peak": 900, "after": 100}}}, "expected api to grow"),
        ({"left": {"forkjoin:threads_running": 2.0}}, "forkjoin:threads_running to be 0 behind it, got 2"),
        ({"left": {}}, "expected the server to answer behind it, but it had ended"),
    ],
)
def test_what_does_not_hold_is_told(change, said):
    (found,) = problems(PLAN, replace(GOOD, **change))
    assert said in found


def test_a_spread_leaves_out_what_is_not_known():
    assert spread([3.0, None, 1.0, 2.0]) == {"min": 1.0, "p50": 2.0, "p90": 3.0, "p99": 3.0, "max": 3.0}
    assert spread([None]) == {}
