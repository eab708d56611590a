from __future__ import annotations

from forkjoin_scheduler.policy.step_admission import LOOKED_AT, MAX_OVERTAKEN, StepAdmission


def no():
    return False


def yes():
    return True


def never_asked():
    raise AssertionError("there is nothing to be asked")


def test_requests_start_in_their_order_as_long_as_there_is_room():
    admission = StepAdmission()
    assert admission.try_admit(yes, may_fork=True)
    assert admission.try_admit(never_asked, may_fork=False)
    assert admission.num_kept == 0


def test_one_that_waits_keeps_those_behind_it_that_may_fork_waiting_unasked():
    admission = StepAdmission()
    assert not admission.try_admit(no, may_fork=True)
    assert not admission.try_admit(never_asked, may_fork=True)
    assert admission.num_kept == 2
    admission.open()
    assert admission.try_admit(yes, may_fork=True)


def test_requests_that_do_not_fork_pass_it_so_many_times_over_all_steps():
    admission = StepAdmission()
    passed = 0
    for _ in range(MAX_OVERTAKEN + 5):
        admission.open()
        assert not admission.try_admit(no, may_fork=True)
        passed += admission.try_admit(never_asked, may_fork=False)
    assert passed == MAX_OVERTAKEN


def test_once_it_has_started_the_next_may_be_passed_as_often():
    admission = StepAdmission()
    for _ in range(2):
        admission.open()
        assert not admission.try_admit(no, may_fork=True)
        assert [admission.try_admit(never_asked, may_fork=False) for _ in range(MAX_OVERTAKEN + 1)].count(
            True
        ) == (MAX_OVERTAKEN)
        admission.open()
        assert admission.try_admit(yes, may_fork=True)


def test_requests_that_do_not_fork_pass_a_family_that_has_lost_blocks_so_many_times():
    admission = StepAdmission()
    passed = 0
    for _ in range(MAX_OVERTAKEN + 5):
        admission.open()
        assert not any(admission.try_readmit(no) for _ in range(2 * LOOKED_AT))  # its threads
        assert admission.num_kept == 1
        passed += admission.try_admit(never_asked, may_fork=False)
    assert passed == MAX_OVERTAKEN
    assert not admission.try_admit(never_asked, may_fork=True)
    admission.open()
    assert admission.try_readmit(yes)
    assert not admission.try_readmit(no)  # the next
    assert admission.try_admit(never_asked, may_fork=False)


def test_after_so_many_in_vain_nobody_else_is_looked_at_in_the_step():
    admission = StepAdmission()
    for _ in range(LOOKED_AT):
        assert not admission.is_shut
        admission.try_admit(no, may_fork=True)
    assert admission.is_shut
    admission.open()
    assert not admission.is_shut


def test_when_none_may_pass_any_more_nobody_behind_one_that_waits_is_looked_at():
    admission = StepAdmission()
    admission.try_admit(no, may_fork=True)
    for _ in range(MAX_OVERTAKEN):
        assert not admission.is_shut
        assert admission.try_admit(never_asked, may_fork=False)
    assert admission.is_shut
    admission.open()
    assert not admission.is_shut


def test_those_behind_a_shut_door_want_no_slot():
    admission = StepAdmission()
    assert admission.num_could_start(100) == 100
    admission.try_admit(no, may_fork=True)
    assert admission.num_could_start(100) == 99
    for _ in range(LOOKED_AT):
        admission.try_admit(no, may_fork=True)
    assert admission.num_could_start(2000) == 0
