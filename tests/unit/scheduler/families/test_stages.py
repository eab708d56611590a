from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkjoin_scheduler.families.stages import in_stages, read_dependencies

PLANS = st.lists(st.lists(st.integers(1, 8), max_size=4), max_size=8)


def announced(plan):
    return [(str(number), list(map(str, depends_on))) for number, depends_on in enumerate(plan, 1)]


def laid_out(plan):
    """The outlines of each stage."""
    sizes, _ = in_stages(announced(plan))
    numbers = iter(range(1, len(plan) + 1))
    return [[next(numbers) for _ in range(size)] for size in sizes]


@given(PLANS)
def test_each_thread_stands_after_the_stages_of_all_that_it_depends_on(plan):
    stages = laid_out(plan)
    assert [number for stage in stages for number in stage] == list(range(1, len(plan) + 1))
    stage_of = {number: n for n, stage in enumerate(stages) for number in stage}
    for number, depends_on in enumerate(plan, 1):
        assert all(stage_of[d] < stage_of[number] for d in depends_on if d < number)


@given(PLANS)
def test_no_stage_begins_without_need(plan):
    stages = laid_out(plan)
    assert all(stages)
    for before, stage in pairwise(stages):
        assert not set(before).isdisjoint(plan[stage[0] - 1])


@given(PLANS)
def test_what_names_no_earlier_thread_is_wrong_and_changes_no_stage(plan):
    right = [[d for d in depends_on if d < number] for number, depends_on in enumerate(plan, 1)]
    stages, num_wrong = in_stages(announced(plan))
    assert num_wrong == sum(len(set(d)) - len(set(r)) for d, r in zip(plan, right, strict=True))
    assert in_stages(announced(right)) == (stages, 0)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("", ()), (" ", ()), ("1", ("1",)), ("1,2.1 , 3", ("1", "2.1", "3")), ("1;2", ("1", "2")), (",", ())],
)
def test_a_list_of_numbers_is_read(text, numbers):
    assert read_dependencies(text) == numbers
