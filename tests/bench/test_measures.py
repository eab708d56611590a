from __future__ import annotations

from dataclasses import replace

import pytest

from forkjoin_bench.comparison.measures import Run, goodput, quantile, ratios, rows_of, values_of
from forkjoin_bench.comparison.report import markdown, read_runs, result_of, write
from forkjoin_bench.comparison.steps import Counts
from forkjoin_bench.comparison.targets import TARGETS
from forkjoin_bench.comparison.targets import markdown as targets_of
from forkjoin_bench.comparison.traffic import Outcome
from forkjoin_bench.scheduler_cost import FAMILIES, ONE_FAMILY, PLAIN, STOCK
from forkjoin_bench.systems.base import Answer
from forkjoin_scheduler.errors import UsageError

HOST = {
    "cpu": "a CPU",
    "usable_cpus": 2,
    "load_average": [0, 0, 0],
    "versions": {"vllm": "0.32"},
    "commit": "abc",
}
TRACES = ("families", "plain")
FACTS = {"command": "forkjoin bench run", "model": "embedded", "rounds": 2, "host": HOST}


def run(
    system: str, *, answer_s: float = 1.0, round_: int = 0, scenario: str = "idle", **values: float
) -> Run:
    nothing = {"prefilled_tail": 0.0, "prefilled_recomputed": 0.0}
    numbers = nothing | {"wall_s": answer_s, "answer_s": answer_s, "prefilled": 0.0, **values}
    load = values.pop("load", "alone")
    return Run(scenario, "8x64", str(load), system, round_, ("f",), numbers, [answer_s], [])


def answer(*arrivals: float, ended: float, error: str | None = None) -> Answer:
    return Answer("f", 10.0, ended, list(arrivals), is_right=error is None, error=error)


def test_times_are_the_clients(family):
    outcome = Outcome([answer(10.5, 10.75, 11.75, ended=12)], 2.0)
    values = values_of(outcome, Counts(steps=4, busy_s=1.6, peak_blocks=8), [family], 16)
    assert (values["answer_s"], values["first_token_s"], values["gap_max_ms"]) == (2.0, 0.5, 1000.0)
    assert values["answer_over_steps"] == pytest.approx(1.25)
    assert values["peak_over_ideal"] == 8 / family.ideal_blocks(16)


def test_answers_that_are_wrong_count_for_nothing(family):
    outcome = Outcome([answer(ended=12), answer(ended=11, error="wrote ''")], 2.0)
    values = values_of(outcome, Counts(), [family, family], 16)
    assert (values["right"], values["wrong"], values["requests_per_s"], values["answer_s"]) == (
        1,
        1,
        0.5,
        2.0,
    )
    assert values["tokens_per_s"] == len(family.token_ids) / 2.0
    alone = values_of(Outcome([answer(ended=11, error="wrote ''")], 2.0), Counts(busy_s=1.0), [family], 16)
    assert "answer_over_steps" not in alone


def test_the_slack_policy_is_compared_with_the_best_of_the_others_at_each_load():
    shares = {"1/s": (0.9, 0.5, 0.9), "2/s": (0.4, 0.8, 0.6), "4/s": (0, 0, 0.1)}
    runs = [
        run(system, scenario="goodput", load=load, in_time=share)
        for load, of_load in shares.items()
        for system, share in zip(("forkjoin", "forkjoin-capped2", "forkjoin-slack"), of_load, strict=True)
    ]
    (target,) = [t for t in TARGETS if t.scenario == "goodput"]
    assert target.measure(runs) == {"1/s": 1.0, "2/s": pytest.approx(0.75)}


def test_goodput_is_of_the_answers_within_the_slo():
    both = Run("load", "families", "c2", "a", 0, ("f", "g"), {"wall_s": 4.0}, [1.0, 3.0], [])
    assert (goodput(both, 0.5), goodput(both, 1.0), goodput(both, 3.0)) == (0.0, 0.25, 0.5)


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1), (0.5, 2), (0.51, 3), (0.9, 4), (1.0, 4)])
def test_a_quantile_is_one_of_the_values(share, expected):
    assert quantile([4, 1, 3, 2], share) == expected


@pytest.mark.parametrize(("num", "percent"), [(10, 90), (20, 95), (100, 99), (100, 7)])
def test_a_quantile_is_the_least_that_so_many_do_not_exceed(num, percent):
    assert quantile(range(1, num + 1), percent / 100) == num * percent // 100


def test_ratios_are_of_runs_that_differ_in_the_system_only():
    runs = [run("a", answer_s=3), run("b", answer_s=2), run("a", answer_s=9, round_=1)]
    assert ratios(runs, "a", "b", "answer_s") == [1.5]


def test_a_row_has_the_spread_of_its_runs():
    (row,) = rows_of([run("a", answer_s=s, round_=i) for i, s in enumerate((3, 1, 2))])
    assert row["values"]["answer_s"] == {"median": 2, "least": 1, "greatest": 3}


def test_rows_stand_in_one_order_and_say_how_much_faster_than_the_client_each_is():
    rows = rows_of(
        [run("sequential", answer_s=6), run("client-http", answer_s=3), run("forkjoin", answer_s=2)]
    )
    assert [row["system"] for row in rows] == ["forkjoin", "client-http", "sequential"]
    assert [row["values"].get("speedup", {}).get("median") for row in rows] == [1.5, None, 0.5]


def test_a_result_is_read_back_as_it_was_written(tmp_path):
    runs = [run("forkjoin"), run("client-http", answer_s=1.5)]
    write(result_of(FACTS, runs), tmp_path / "r.json")
    result, again = read_runs(tmp_path / "r.json")
    assert again == runs
    assert "| 8x64 | alone | client-http | 1.500 |" in markdown(result, again)


def test_a_file_that_is_no_result_is_an_error(tmp_path):
    with pytest.raises(UsageError, match="expected a result of `forkjoin bench`"):
        read_runs(tmp_path / "none.json")


def test_goodput_is_told_of_the_trace_whose_idle_answer_it_is_measured_by():
    alone = replace(run("client-http", scenario="load", load="c1"), trace="families")
    loaded = [
        replace(run("forkjoin", scenario=trace, load="c16"), trace=trace, families=("a", "b"))
        for trace in TRACES
    ]
    runs = [alone, *loaded]
    told = markdown(result_of(FACTS, runs), runs)
    of_each = {part.partition("\n")[0]: part for part in told.split("## ")}
    assert {
        name: "Goodput, answers a second" in part for name, part in of_each.items() if name in TRACES
    } == {
        "families": True,
        "plain": False,
    }


@pytest.mark.parametrize(
    "content", ["[]", '{"runs": {"1": {"all": []}}}', '{"runs": [{"problems": "2", "seconds": 1}]}', "{}"]
)
def test_a_result_of_another_command_is_an_error(tmp_path, content):
    path = tmp_path / "r.json"
    path.write_text(content)
    for show in (lambda result, runs: markdown(result, runs), lambda *read: targets_of([read])):
        with pytest.raises(UsageError, match="expected"):
            show(*read_runs(path))


def test_each_target_is_met_not_met_or_not_measured():
    runs = [
        run("forkjoin-stitch", answer_s=1.0, fork_steps_max=1),
        run("forkjoin", answer_s=1.0, fork_steps_max=2),
        run("client-http", answer_s=1.3),
    ]
    lines = targets_of([(FACTS, runs)]).splitlines()
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in lines if "`forkjoin bench" in line}
    assert set(rows) == {t.name for t in TARGETS}
    steps = rows["steps from the trigger to the threads' first"]
    assert "| 2 (forkjoin, 8x64) | **not met** (1 of 2 cases are) |" in steps
    assert "| 1.3 (client-http / forkjoin-stitch, 8x64) | met |" in rows["the same, stitched, 8x64"]
    assert "not measured" in rows["plain throughput, ours / stock"]


def test_what_forks_and_joins_take_bounds_what_can_be_gained():
    runs = [run("client-http", answer_s=4.0, forks_s=0.5, joins_s=1.5), run("forkjoin", answer_s=3.0)]
    assert "| client-http, 8x64 | 2 |" in targets_of([(FACTS, runs)])


def test_the_schedulers_own_targets_are_judged_by_its_result():
    costs = {
        PLAIN: {"8": 102.0, "32": 205.0},
        STOCK: {"8": 100.0, "32": 200.0},
    }
    slopes = {ONE_FAMILY: 1.3, FAMILIES: 1.0, STOCK: 1.28}
    told = targets_of([({"costs": costs, "slopes": slopes}, [])])
    assert "| 1.3 (one family) | **not met** (1 of 2 cases are)" in told
    assert "| 0.02 (one family) | met |" in told
    assert "| 8 requests | 1.02 | met |" in told
    assert "| 32 requests | 1.025 | **not met** |" in told


def test_plain_traffic_stands_beside_each_stock_server_and_these_beside_each_other():
    rates = {"forkjoin": 9.0, "sequential": 10.0, "sequential-again": 9.0}
    told = targets_of([(FACTS, [run(s, scenario="plain", requests_per_s=rate) for s, rate in rates.items()])])
    assert "| plain throughput, ours / stock | forkjoin / sequential, alone | 0.9 | **not met** |" in told
    assert "| plain throughput, ours / stock | forkjoin / sequential-again, alone | 1 | met |" in told
    assert "| throughput, sequential-again / sequential, alone | 0.9 |" in told


def test_slack_is_compared_with_the_best_other_policy_of_each_load():
    def run(good, p95_s):
        return {"num_good": good, "num_requests": 10, "plain_token_s": {"p95": p95_s}}

    def of_load(load, threads, *runs):
        return {"load": load, "threads": threads, "slo_itl_ms": 40.0, "runs": runs}

    low = [of_load("low", "eager", run(10, 0.02)), of_load("low", "slack", run(10, 0.02))]
    high = [
        of_load("high", "eager", run(4, 0.06)),
        of_load("high", "capped2", run(5, 0.05), run(7, 0.05)),
        of_load("high", "slack", run(8, 0.03), run(10, 0.05)),
    ]
    alone = [of_load("alone", "slack", run(1, 0.05))]
    told = targets_of([({"goodput": [*low, *high, *alone]}, [])])
    assert "| requests in time, slack / the best other policy | low | 1 | met |" in told
    assert "| requests in time, slack / the best other policy | high | 1.5 | met |" in told
    assert "p95 of a token's time / the SLO, slack | high | 1 | met |" in told
    assert "| alone | 1.25 | **not met** |" in told
