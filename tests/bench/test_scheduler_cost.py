from __future__ import annotations

import pytest

from forkjoin_bench.inputs.traces import forks_in
from forkjoin_bench.scheduler_cost import KINDS, ONE_FAMILY, PLAIN, STOCK, Cost, families_of, slope
from forkjoin_bench.vllm_seam.fed import counted


@pytest.mark.parametrize("kind", KINDS)
def test_as_many_sequences_decode_as_asked_for(kind, words):
    families = families_of(kind, 16, words)
    widths = [sum(len(f.threads) for f in forks_in(family.body)) or 1 for family in families]
    assert sum(widths) == 16
    assert len(families) == {ONE_FAMILY: 1, PLAIN: 16, STOCK: 16}.get(kind, 2)


@pytest.mark.parametrize("power", [1, 2])
def test_the_slope_is_the_exponent_of_growth(power):
    costs = [Cost(PLAIN, width, float(width**power), 0) for width in (8, 128, 1024)]
    assert slope(costs) == pytest.approx(power)


def test_calls_are_counted_whether_they_are_to_python_or_to_c():
    def double(number):
        return 2 * number

    with counted() as calls:
        double(len([1, 2]))
    assert (calls["call"], calls["c_call"]) >= (1, 1)
    before = calls.total()
    double(1)
    assert calls.total() == before
