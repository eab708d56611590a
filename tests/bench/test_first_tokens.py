from __future__ import annotations

from forkjoin_bench.kept.counts import CACHED, KEPT, STOCK
from forkjoin_bench.kept.first_tokens import Wait, num_prefilled, rows


def test_only_prompts_that_are_asked_about_count_and_only_up_to_their_ends():
    steps = [
        {"total": 9},
        {"new": {"a": ["A", 10, None], "b": ["B", 8, None]}, "n": {"a": [4, 3], "b": [0, 8]}},
        {"new": {}, "n": {"a": [7, 4], "b": [8, 1]}},
        {"new": {"c": ["C", 6, None]}, "n": {"a": [11, 1], "c": [5, 1]}},
    ]
    assert num_prefilled(steps, {"A"}) == 6
    assert num_prefilled(steps, {"A", "C"}) == 7
    assert num_prefilled(steps, set()) == 0


def test_the_table_compares_each_case_with_stock():
    waits = [
        Wait(STOCK, 0, [2.0, 4.0], 200),
        Wait(STOCK, 1, [3.0, 3.0], 100),
        Wait(CACHED, 0, [3.0, 3.0], 60),
        Wait(KEPT, 0, [1.0, 2.0], 10),
    ]
    assert rows(waits) == [
        [STOCK, "3.00", "4.00", "75", "1.00"],
        [CACHED, "3.00", "3.00", "30", "1.00"],
        [KEPT, "1.50", "2.00", "5", "2.00"],
    ]
