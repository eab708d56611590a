"""What ends when a client cancels threads, decided on the tree alone."""

from __future__ import annotations

import pytest

from forkjoin_scheduler.dialects.limits import Limits
from forkjoin_scheduler.families.family import Family
from forkjoin_scheduler.families.fork import ForkPlan, ThreadPlan
from forkjoin_scheduler.families.thread_end import ThreadEnd
from forkjoin_scheduler.machine.cancelling import thread_at, to_end


def plan(num):
    return ForkPlan(tuple(ThreadPlan(str(n), "", (0,), (0,)) for n in range(num)), 0)


@pytest.fixture
def family():
    """A request of two threads, of which the second has two of its own."""
    family = Family("r", Limits())
    family.fork(family.root, plan(2))
    family.fork(family.threads[1], plan(2))
    return family


def indices(branches):
    return [branch.index for branch in branches]


def test_of_a_thread_that_has_forked_its_threads_end_first(family):
    outer = family.threads[1]
    assert indices(to_end([outer])) == [2, 3]
    for thread in to_end([outer]):
        family.end(thread, ThreadEnd.CLIENT_CANCELLED)
    assert to_end([outer]) == [], "it is joined first"
    assert family.take_joinable() is outer
    family.join(outer, [])
    assert to_end([outer]) == [outer]


def test_a_thread_beneath_another_that_is_cancelled_too_ends_once(family):
    assert indices(to_end([family.threads[3], family.threads[1], family.threads[0]])) == [3, 2, 0]


def test_what_has_ended_and_gets_its_last_kv_is_left_alone(family):
    family.threads[0].end = ThreadEnd.STOP
    assert to_end([family.threads[0]]) == []


@pytest.mark.parametrize(("index", "is_one"), [(-1, False), (0, True), (3, True), (4, False)])
def test_a_family_has_the_threads_that_it_started(family, index, is_one):
    assert (thread_at(family, index) is not None) == is_one
