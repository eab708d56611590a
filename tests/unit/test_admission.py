from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkjoin_scheduler.policy.admission import Admission, Expectation, Need, Room

ROOM = Room(num_free=100, tokens_per_block=32, num_slots=64)
NEEDS = st.builds(Need, st.integers(0, 2000), st.integers(0, 8), st.integers(0, 1000))
ROOMS = st.builds(Room, st.integers(0, 400), st.sampled_from([16, 32, 128]), st.integers(1, 128))


def taught(tokens=640, width=4, critical=320, times=200):
    """One that has seen ``times`` requests that came to the same."""
    admission = Admission()
    for _ in range(times):
        admission.learn(Need(tokens, width, critical))
    return admission


def num_admitted(admission, room, prompt_blocks=5):
    """How many requests start side by side before one has written anything."""
    running = []
    while admission.admits(prompt_blocks, 1 << 30, running, room):
        running.append(Need(0))
        room = replace(room, num_free=room.num_free - prompt_blocks)
        if len(running) > 1000:
            break
    return len(running)


def test_an_expectation_is_the_prior_until_something_was_seen():
    expectation = Expectation(7.0)
    assert expectation.mean == 7.0
    expectation.see(1.0)
    assert expectation.mean == 1.0


def test_an_expectation_is_the_mean_of_the_first_few_and_then_forgets():
    expectation = Expectation(0.0, weight=0.1)
    for value in [1, 2, 3, 4]:
        expectation.see(value)
    assert expectation.mean == pytest.approx(2.5)
    for _ in range(200):
        expectation.see(10)
    assert expectation.mean == pytest.approx(10)


@given(st.lists(st.floats(0, 1e6), min_size=1))
def test_an_expectation_stays_between_what_was_seen(values):
    expectation = Expectation(1e9)
    for value in values:
        expectation.see(value)
    assert min(values) - 1e-6 <= expectation.mean <= max(values) + 1e-6


@given(st.integers(0, 10_000), ROOMS)
def test_a_request_that_would_run_alone_always_may(prompt_blocks, room):
    assert Admission().admits(prompt_blocks, 10_000, [], room)


@given(st.integers(0, 100), st.lists(NEEDS, min_size=1, max_size=8), NEEDS, ROOMS)
def test_one_more_that_runs_never_makes_room(prompt_blocks, running, another, room):
    admission = Admission()
    if admission.admits(prompt_blocks, 1000, [*running, another], room):
        assert admission.admits(prompt_blocks, 1000, running, room)


@given(st.integers(0, 100), st.lists(NEEDS, max_size=8), ROOMS, st.integers(0, 100), st.integers(0, 64))
def test_more_room_never_keeps_a_request_out(prompt_blocks, running, room, more_blocks, more_slots):
    admission = Admission()
    if admission.admits(prompt_blocks, 1000, running, room):
        roomier = replace(room, num_free=room.num_free + more_blocks, num_slots=room.num_slots + more_slots)
        assert admission.admits(prompt_blocks, 1000, running, roomier)


def test_a_request_that_may_write_little_needs_little():
    admission, running = taught(tokens=3200), [Need(3000, 4, 1500)]
    room = replace(ROOM, num_free=30)
    assert not admission.admits(5, 3200, running, room)
    assert admission.admits(5, 64, running, room)


def test_what_a_running_request_has_written_is_not_kept_free_again():
    admission, room = taught(), replace(ROOM, num_free=40)
    assert not admission.admits(5, 640, [Need(0)] * 2, room)
    assert admission.admits(5, 640, [Need(600, 4, 300)] * 2, room)


def test_one_that_has_outgrown_what_was_expected_is_still_expected_to_grow():
    admission = taught()
    assert not admission.admits(0, 640, [Need(64_000, 4, 640)] * 40, replace(ROOM, num_free=20))


def test_slots_run_out_as_blocks_do():
    admission, plenty = taught(), replace(ROOM, num_free=10_000, num_slots=8)
    assert admission.parallelism.mean == pytest.approx(2)
    assert num_admitted(admission, plenty) == 4


def test_those_who_learn_of_smaller_families_let_more_of_them_in():
    assert num_admitted(taught(tokens=160), ROOM) > num_admitted(taught(tokens=1600), ROOM)


def end_one(admission, times=1, *, while_others_wait):
    for _ in range(times):
        if while_others_wait:
            assert not admission.admits(1000, 640, [Need(0)], ROOM)
        admission.learn(Need(100, 2, 50))


def test_the_reserve_shrinks_as_requests_end_while_others_wait_and_grows_with_each_loss():
    admission = Admission()
    end_one(admission, while_others_wait=True)
    shrunk = admission.reserve
    assert shrunk < Admission.RESERVE
    admission.ran_short()
    assert admission.reserve > shrunk
    end_one(admission, times=1000, while_others_wait=True)
    assert admission.reserve == Admission.LEAST_RESERVE
    for _ in range(1000):
        admission.ran_short()
    assert admission.reserve == Admission.MOST_RESERVE


def test_a_quiet_time_does_not_teach_that_little_is_enough():
    admission = Admission()
    end_one(admission, times=1000, while_others_wait=False)
    assert admission.reserve == Admission.RESERVE
    end_one(admission, times=20, while_others_wait=True)
    end_one(admission, times=100, while_others_wait=False)
    assert admission.reserve == pytest.approx(Admission.RESERVE, abs=0.01)


def test_admission_is_due_until_requests_are_seen_not_to_fork():
    admission = Admission()
    assert admission.is_due
    for _ in range(100):
        admission.learn(Need(100, 0, 100))
    assert not admission.is_due
    admission.learn(Need(100, 3, 50))
    assert admission.is_due
