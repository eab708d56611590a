from __future__ import annotations

import pytest

from forkjoin_bench.drafted.command import cells, summarise
from forkjoin_bench.drafted.measure import NONE, Run


def run(drafter: str, *, forks: bool, steps: int, threads: int = 0, token: int = 1, right: int = 0) -> Run:
    drafted = {"drafter": 8} if right else {}
    return Run(
        drafter, 2, forks, steps, steps / 10, threads, (token,), drafted, {"drafter": right} if right else {}
    )


UNDRAFTED = [
    run(NONE, forks=False, steps=100),
    run(NONE, forks=False, steps=300),
    run(NONE, forks=True, steps=60, threads=2),
    run(NONE, forks=True, steps=100, threads=3),
]


def test_what_forks_keep_of_a_drafters_gain_is_told_by_steps():
    drafted = [
        run("ngram", forks=False, steps=50),
        run("ngram", forks=False, steps=50),
        run("ngram", forks=True, steps=20, threads=2, right=2),
        run("ngram", forks=True, steps=30, threads=3, right=4),
    ]
    row = summarise(UNDRAFTED + drafted, "ngram")
    assert row["steps"] == [50, 25]
    assert row["gains"] == [pytest.approx(200 / 50), pytest.approx(80 / 25)]
    assert row["kept"] == pytest.approx(0.8)
    assert row["right"] == {"drafter": pytest.approx(6 / 16), "family": None}
    assert (row["same_answers"], row["answers"], row["same_threads"]) == (4, 4, True)
    assert cells(row)[:2] == ["ngram", "50.0"]


def test_another_answer_and_another_number_of_threads_are_told():
    drafted = [
        run("ngram", forks=False, steps=50, token=2),
        run("ngram", forks=False, steps=50),
        run("ngram", forks=True, steps=20),
        run("ngram", forks=True, steps=30, threads=3),
    ]
    row = summarise(UNDRAFTED + drafted, "ngram")
    assert (row["same_answers"], row["same_threads"]) == (3, False)
