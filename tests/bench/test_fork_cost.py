from __future__ import annotations

from types import SimpleNamespace

import pytest

from forkjoin_bench.fork_cost import (
    REPREFILL,
    STITCH,
    STOCK,
    Case,
    Cost,
    between,
    growth,
    markdown,
    measure,
    median,
)
from forkjoin_bench.scheduler_cost import BLOCK_SIZE


def _part(seconds, num_hashed=0):
    return SimpleNamespace(seconds=seconds, num_hashed=num_hashed)


def _step(before, after, handover_s=0.0, handover_bytes=0):
    return SimpleNamespace(
        before=_part(*before), after=_part(*after), handover_s=handover_s, handover_bytes=handover_bytes
    )


def _case(context, ms, width=2):
    cost = Cost(ms, 0.0, 0.0, 0)
    return Case(REPREFILL, context, width, cost, cost)


def test_a_cost_is_from_the_end_of_one_step_to_the_model_of_another():
    last = _step((9.0,), (0.5, 3), 9.0, 10**9)
    job, first = _step((0.125, 1), (0.25, 2), 0.5, 10**6), _step((1.0, 4), (9.0, 9), 0.25, 2 * 10**6)
    assert between(last, [job, first]) == Cost(1875.0, 750.0, 3.0, 10)
    assert between(last, [first]) == Cost(1500.0, 250.0, 2.0, 7)


def test_the_median_is_of_each_number():
    costs = [Cost(1, 6, 0, 2), Cost(3, 4, 0, 2), Cost(2, 5, 9, 8)]
    assert median(costs) == Cost(2, 5, 0, 2)


@pytest.mark.parametrize("power", [0, 1, 2])
def test_the_growth_is_the_exponent_over_the_contexts(power):
    cases = [_case(context, context**power) for context in (1024, 8192, 131072)]
    assert growth([*cases, _case(2048, 7, width=8)], 2, "fork") == pytest.approx(power)


def test_a_table_has_a_row_for_each_width_and_system():
    lines = markdown([_case(1024, 2.0), _case(4096, 8.0)], "join").splitlines()
    assert lines[0] == "| threads | join | 1024 | 4096 | growth |"
    assert lines[2:] == [f"| 2 | {REPREFILL} | 2.0 + 0.0 ms, 0.00 MB, 0 | 8.0 + 0.0 ms, 0.00 MB, 0 | 1.00 |"]


@pytest.mark.engine
def test_no_block_is_hashed_again_for_a_fork_or_a_join():
    """Of a client's threads all are. A thread, and a joined context, has at most a few blocks of its own."""
    context, width = 2048, 3
    cases = {case.system: case for case in measure(context, width, rounds=1)}
    assert cases[STOCK].fork.num_hashed >= width * context // BLOCK_SIZE
    for system in (REPREFILL, STITCH):
        assert cases[system].fork.num_hashed <= 2 * width
        assert cases[system].join.num_hashed <= 3 * width
        assert cases[system].fork.handover_mb < 0.6 * cases[STOCK].fork.handover_mb
