"""When a client is told that a thread waits."""

from __future__ import annotations

from forkjoin_scheduler.families.waits import TOLD_AFTER, Waits


def told(*waits, has_begun=False):
    """What of ``waits``, one a step, a client is told."""
    seen = Waits()
    return [wait for wait in waits if seen.see(0, wait, has_begun=has_begun)]


def test_one_that_has_not_begun_is_told_of_at_once_and_once():
    assert told("turn", "turn", "room", None, None) == ["turn", None]


def test_a_step_that_one_sits_out_is_not_told():
    assert told(*["turn", None] * 20, has_begun=True) == []


def test_a_wait_that_lasts_is_told_when_it_has_lasted():
    assert told(*["turn"] * (TOLD_AFTER - 1), None, has_begun=True) == []
    assert told(*["turn"] * TOLD_AFTER, None, has_begun=True) == ["turn", None]


def test_one_whose_wave_has_come_may_wait_for_something_else():
    assert told("wave", "wave", "turn", "room", None) == ["wave", "turn", None]


def test_each_thread_is_told_of_by_itself():
    seen = Waits()
    assert seen.see(0, "turn", has_begun=False)
    assert seen.see(1, "turn", has_begun=False)
    assert not seen.see(2, None, has_begun=False)
