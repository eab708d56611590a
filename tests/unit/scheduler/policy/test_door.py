from __future__ import annotations

from forkjoin_scheduler.policy.door import LOOKED_AT, MAX_OVERTAKEN, Door


def no():
    return False


def yes():
    return True


def never_asked():
    raise AssertionError("there is nothing to be asked")


def test_requests_start_in_their_order_as_long_as_there_is_room():
    door = Door()
    assert door.lets_in(yes, may_fork=True)
    assert door.lets_in(never_asked, may_fork=False)
    assert door.num_kept == 0


def test_one_that_waits_keeps_those_behind_it_that_may_fork_waiting_unasked():
    door = Door()
    assert not door.lets_in(no, may_fork=True)
    assert not door.lets_in(never_asked, may_fork=True)
    assert door.num_kept == 2
    door.open()
    assert door.lets_in(yes, may_fork=True)


def test_requests_that_do_not_fork_pass_it_so_many_times_over_all_steps():
    door = Door()
    passed = 0
    for _ in range(MAX_OVERTAKEN + 5):
        door.open()
        assert not door.lets_in(no, may_fork=True)
        passed += door.lets_in(never_asked, may_fork=False)
    assert passed == MAX_OVERTAKEN


def test_once_it_has_started_the_next_may_be_passed_as_often():
    door = Door()
    for _ in range(2):
        door.open()
        assert not door.lets_in(no, may_fork=True)
        assert [door.lets_in(never_asked, may_fork=False) for _ in range(MAX_OVERTAKEN + 1)].count(True) == (
            MAX_OVERTAKEN
        )
        door.open()
        assert door.lets_in(yes, may_fork=True)


def test_after_so_many_in_vain_nobody_else_is_looked_at_in_the_step():
    door = Door()
    for _ in range(LOOKED_AT):
        assert not door.is_shut
        door.lets_in(no, may_fork=True)
    assert door.is_shut
    door.open()
    assert not door.is_shut


def test_when_none_may_pass_any_more_nobody_behind_one_that_waits_is_looked_at():
    door = Door()
    door.lets_in(no, may_fork=True)
    for _ in range(MAX_OVERTAKEN):
        assert not door.is_shut
        assert door.lets_in(never_asked, may_fork=False)
    assert door.is_shut
    door.open()
    assert not door.is_shut


def test_those_behind_a_shut_door_want_no_slot():
    door = Door()
    assert door.num_could_start(100) == 100
    door.lets_in(no, may_fork=True)
    assert door.num_could_start(100) == 99
    for _ in range(LOOKED_AT):
        door.lets_in(no, may_fork=True)
    assert door.num_could_start(2000) == 0
