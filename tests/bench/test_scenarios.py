from __future__ import annotations

import pytest

from forkjoin_bench.comparison.scenarios import DEFAULT, MAKERS, choose
from forkjoin_bench.inputs.traces import SHAPES
from forkjoin_bench.systems.names import CLIENT_HTTP, FORKJOIN
from forkjoin_scheduler.errors import UsageError


@pytest.mark.parametrize("quick", [True, False])
def test_every_scenario_names_traces_that_there_are(quick):
    for scenario in choose(list(MAKERS), quick=quick):
        assert set(scenario.traces) <= set(SHAPES)
        assert FORKJOIN in scenario.systems


def test_the_goodputs_base_is_part_of_the_load():
    (load,) = choose(["load"], quick=True)
    assert CLIENT_HTTP in load.systems
    assert "c1" in [level.name for level in load.loads]


def test_loads_may_be_chosen_by_name():
    (load,) = choose(["load"], quick=False, loads=["c16"])
    assert [level.name for level in load.loads] == ["c16"]


def test_a_load_that_a_scenario_does_not_have_is_an_error():
    with pytest.raises(UsageError, match="--loads: expected one of load's, c1, c4, c16, c64, got c3"):
        choose(["load"], quick=False, loads=["c3"])


def test_a_trace_that_the_quick_form_leaves_out_may_be_asked_for():
    (idle,) = choose(["idle"], quick=True, traces=["nested"])
    assert idle.traces == ("nested",)


def test_requests_of_goodput_come_at_the_rate_that_its_load_is_called_by():
    (goodput,) = choose(["goodput"], quick=False)
    for load in goodput.loads:
        num = load.num_families + load.num_plain
        delays = load.delays(num)
        assert len(delays) == num
        assert load.within_s is not None
        assert 0.9 * load.within_s < max(delays) < load.within_s
        assert load.name == f"{num / load.within_s:g}/s"


def test_all_but_the_smoke_test_and_goodput_is_run_by_default():
    assert set(MAKERS) - set(DEFAULT) == {"smoke", "goodput"}
