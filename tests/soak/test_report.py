"""The soak's verdict, worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.soak.memory import KIB, MIB, Rest
from tests.soak.outcome import How, Outcome
from tests.soak.report import VALIDATION, Found, leaked, problems, rest_line, table
from tests.soak.watch import Watch, growth, slope

WELL = [Outcome("known", How.FINISHED, 2.0)] * 30 + [
    Outcome("wrong", How.REFUSED, 0.1),
    Outcome("leaves a stream", How.CANCELLED, 1.0),
]


def watched(mib_per_s: float = 0.0) -> Watch:
    watch = Watch({"api": None})
    watch.samples["api"] = [(float(s), 500 + mib_per_s * s, 40) for s in range(100)]
    return watch


def rested(kib_per_request: float = 0.0) -> list[Rest]:
    return [Rest(n, {"api": int(400 * MIB + n * kib_per_request * KIB)}, n / 2) for n in (500, 750, 1000)]


@pytest.fixture
def found() -> Found:
    return Found(
        WELL,
        len(WELL),
        30,
        {"reset": 2},
        watched(),
        rested(),
        {"api": 40},
        {"api": 41},
        {"running": 0.0},
        "{}\n",
        100,
    )


def test_all_is_well(found):
    assert problems(found) == []
    assert "| all | 32 | 30 | 1 | 1 | 0 | 2.0 | 2.0 |" in table(found)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_sent": 33}, "33 requests were sent and 32 ended"),
        ({"outcomes": [*WELL[1:], Outcome("known", How.FAILED, 1.0, "Unfit: x")]}, "known: Unfit: x"),
        ({"outcomes": [WELL[0]] * 32}, "no request was refused"),
        ({"num_compared": 0}, "no answer was compared"),
        ({"faults": {"reset": 0}}, "no fault was injected: reset"),
        ({"watch": watched(2.0)}, "api: resident memory grew by 118 MiB after the warm-up, 64 are allowed"),
        ({"rests": rested(10)}, "api: 5000 KiB more in use at rest after 500 more requests"),
        ({"fds_after": {"api": 45}}, "api: 5 more file descriptors than before"),
        ({"logs_again": False}, "nothing was logged any more"),
        ({"idle": {"running": 1.0}}, "running is 1.0 on the idle server"),
        ({"log": 'x\n{"exception": "Traceback (most recent call last)"}'}, "the log has a traceback: "),
        ({"rests": [*rested()[:2], replace(rested()[2], cpu_s=750)]}, "a request took 500 ms of CPU time at first and 1500 ms at last"),
    ],
    ids=["lost", "failed", "one_way_only", "not_compared", "no_fault", "memory", "leak", "descriptors", "log_ended", "not_idle", "traceback", "slower"],
)  # fmt: skip
def test_what_is_not_well_is_said(found, change, said):
    assert any(problem.startswith(said) for problem in problems(replace(found, **change)))


def test_tracebacks_of_bodies_that_vllm_refuses_are_its_own(found):
    line = f'{{"logger": "{VALIDATION}", "exception": "Traceback (most recent call last)"}}'
    assert problems(replace(found, log=line)) == []


def test_the_line_through_points_is_the_one_of_least_squares():
    assert slope([(0, 1), (1, 3), (2, 5)]) == pytest.approx(2)
    assert slope([(0, 0), (1, 1), (2, 0)]) == pytest.approx(0)
    assert slope([(1, 7)]) == 0
    assert growth([(10, 1), (20, 3), (40, 7)]) == pytest.approx(6)


def test_what_is_first_met_late_is_no_leak():
    first, second, last = rested(1)
    assert leaked([first, second, replace(last, in_use={"api": last.in_use["api"] + 200 * KIB})], "api") == []


def test_what_a_process_keeps_once_is_no_leak():
    first, second, last = rested(1)
    kept = [replace(r, in_use={"api": r.in_use["api"] + MIB}) for r in (second, last)]
    assert leaked([first, *kept], "api") == []


def test_a_rest_says_what_is_in_use():
    assert rest_line(rested()[0]) == "at rest after 500 requests: api 400.00 MiB"


def test_what_was_resident_while_the_server_warmed_up_is_not_looked_at():
    watch = Watch({"api": None})
    watch.samples["api"] = [(0.0, 100.0, 9), (39.0, 400.0, 9), (40.0, 500.0, 9), (100.0, 500.0, 9)]
    assert watch.memory("api") == [(40.0, 500.0), (100.0, 500.0)]
