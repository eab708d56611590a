from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkjoin_scheduler.policy.admission import (
    Admission,
    Expectation,
    Future,
    Need,
    Room,
    most_in_use,
    readmission,
)

ROOM = Room(num_free=100, tokens_per_block=32, num_slots=64)
NEEDS = st.builds(
    Need,
    st.integers(0, 2000),
    st.integers(0, 8),
    st.integers(0, 1000),
    st.integers(0, 40),
    st.sampled_from([100, 1 << 30]),
)
ROOMS = st.builds(Room, st.integers(0, 400), st.sampled_from([16, 32, 128]), st.integers(1, 128))
NEW = st.builds(Need, blocks=st.integers(0, 100))
#: Whole numbers, so that an oracle can go step by step.
FUTURES = st.lists(
    st.builds(Future, st.integers(1, 12), st.integers(0, 24), st.integers(0, 24)), min_size=1, max_size=8
)


def taught(tokens=640, width=4, critical=320, times=200):
    """One that has seen ``times`` requests that came to the same."""
    admission = Admission()
    for _ in range(times):
        admission.learn(Need(tokens, width, critical))
    return admission


def num_admitted(admission, room, blocks=5):
    """How many requests start side by side before one has written anything."""
    running, new = [], Need(blocks=blocks)
    while admission.admits(new, running, room):
        running.append(new)
        room = replace(room, num_free=room.num_free - blocks)
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
def test_a_request_that_would_run_alone_always_may(blocks, room):
    assert Admission().admits(Need(blocks=blocks), [], room)


def in_use(futures, step):
    """What is in use behind ``step`` steps, right before those that end there do: counted one by one."""
    grown = sum(f.growth * step / f.steps for f in futures if f.steps >= step)
    return grown - sum(f.held for f in futures if f.steps < step)


@given(FUTURES)
def test_the_most_in_use_is_that_of_the_worst_of_all_steps(futures):
    last = max(f.steps for f in futures)
    worst = max(in_use(futures, step) for step in range(last + 1))
    assert most_in_use(futures) == pytest.approx(worst)


@given(FUTURES, st.builds(Future, st.integers(1, 12), st.integers(0, 24), st.just(0)))
def test_one_more_that_runs_and_has_nothing_to_give_back_never_makes_room(futures, another):
    assert most_in_use([*futures, another]) >= most_in_use(futures) - 1e-9


@given(NEW, st.lists(NEEDS, max_size=8), ROOMS, st.integers(0, 100), st.integers(0, 64))
def test_more_room_never_keeps_a_request_out(new, running, room, more_blocks, more_slots):
    admission = Admission()
    if admission.admits(new, running, room):
        roomier = replace(room, num_free=room.num_free + more_blocks, num_slots=room.num_slots + more_slots)
        assert admission.admits(new, running, roomier)


def test_drafts_take_room_beside_each_sequence():
    admission = taught()
    plain, drafted = (
        admission.future(Need(blocks=5, ahead=ahead), ROOM.tokens_per_block).growth for ahead in (0.0, 0.5)
    )
    assert drafted == pytest.approx(plain + Admission.ENOUGH * 4 * 0.5)


def test_a_request_that_may_write_little_needs_little():
    admission, running = taught(tokens=3200, critical=1600), [Need(100, 4, 50)]
    assert not admission.admits(Need(blocks=5, max_tokens=3200), running, ROOM)
    assert admission.admits(Need(blocks=5, max_tokens=64), running, ROOM)


def test_what_a_running_request_has_written_is_not_kept_free_again():
    admission, room, new = taught(), replace(ROOM, num_free=40), Need(blocks=5)
    assert not admission.admits(new, [Need()] * 2, room)
    assert admission.admits(new, [Need(600, 4, 300)] * 2, room)


def test_what_ends_soon_makes_room_for_what_grows_later():
    admission, room, new = taught(), replace(ROOM, num_free=20), Need(blocks=5)
    assert admission.admits(new, [Need(600, 4, 300, blocks=20)], room)
    assert not admission.admits(new, [Need(100, 4, 50, blocks=20)], room)


def test_one_that_has_outgrown_what_was_expected_is_still_expected_to_grow():
    admission = taught()
    assert not admission.admits(Need(), [Need(640, 4, 320)] * 40, replace(ROOM, num_free=20))


def test_slots_run_out_as_blocks_do():
    admission, plenty = taught(), replace(ROOM, num_free=10_000, num_slots=8)
    assert admission.parallelism.mean == pytest.approx(2)
    assert num_admitted(admission, plenty) == 4


def test_those_who_learn_of_smaller_families_let_more_of_them_in():
    assert num_admitted(taught(tokens=160), ROOM) > num_admitted(taught(tokens=1600), ROOM)


def test_admission_is_due_until_requests_are_seen_not_to_fork():
    admission, full = Admission(), Room(num_free=0, tokens_per_block=32, num_slots=64)
    assert not admission.admits(Need(), [Need()], full)
    for _ in range(100):
        admission.learn(Need(100, 0, 100))
    assert admission.admits(Need(), [Need()], full)
    assert not admission.admits(Need(asked=2), [Need()], full), "this one forks, whatever others do"
    admission.learn(Need(100, 3, 50))
    assert not admission.admits(Need(), [Need()], full)


def test_one_that_did_not_fork_does_not_yet_say_that_the_model_does_not():
    admission, full = Admission(), Room(num_free=0, tokens_per_block=32, num_slots=64)
    for _ in range(10):
        admission.learn(Need(100, 0, 100))
        assert not admission.admits(Need(), [Need()], full)


# ---- before any has ended ------------------------------------------------------------------

COLD = Room(num_free=1200, tokens_per_block=16, num_slots=256)


def test_before_any_has_ended_a_request_is_expected_to_take_a_twelfth_of_the_cache():
    expected = Admission().expected_tokens
    assert expected([], COLD) == expected([Need(blocks=200)], replace(COLD, num_free=1000)) == 1600
    assert expected([], replace(COLD, num_free=10)) == Admission.PRIOR_TOKENS
    assert expected([], replace(COLD, num_free=10**6)) == Admission.MOST_PRIOR_TOKENS


def test_small_families_show_themselves_by_the_threads_that_have_ended():
    expected = Admission().expected_tokens
    assert expected([Need(120, width=4)] * 4, COLD) == 1600
    # one thread has ended for each 120 tokens; the prior, a sixth of 1,600, counts as a fourth of a thread
    each = (1600 / 6 / 4 + 4 * 120) / 4.25
    assert expected([Need(120, width=4, ended_threads=1)] * 4, COLD) == pytest.approx(6 * each)
    assert expected([Need(120, width=4, ended_threads=3)] * 4, COLD) == Admission.PRIOR_TOKENS


def test_families_whose_threads_write_much_are_expected_to_take_no_more_than_before():
    assert Admission().expected_tokens([Need(900, width=4, ended_threads=1)] * 4, COLD) == 1600


def test_what_was_given_or_asked_for_tells_nothing_of_what_the_model_writes():
    admission, others = Admission(), [Need(20_000, given=20_000), Need(9000, asked=4)]
    assert admission.expected_tokens(others, COLD) == admission.expected_tokens([], COLD)
    for _ in range(3):
        admission.learn(Need(300, width=2, critical=150))
    assert admission.expected_tokens(others, COLD) == 300


def test_the_first_to_end_are_the_shortest():
    admission, running = Admission(), [Need(400, blocks=100)] * 4
    admission.learn(Need(300, 4, 100))
    # 300 of the one that has ended, and half of what the others have written
    assert admission.expected_tokens(running, COLD) == 300 + 4 * 400 / 2
    admission.learn(Need(300, 4, 100))
    assert admission.expected_tokens(running, COLD) == 300 + 4 * 400 / 4
    assert admission.expected_tokens([], COLD) == 300
    assert admission.expected_tokens([Need(9000)] * 4, COLD) == 1600, (
        "what it was before any had ended, at most"
    )


def test_one_that_has_ended_with_more_than_was_expected_is_believed():
    admission = Admission()
    admission.learn(Need(5000, 4, 2000))
    assert admission.expected_tokens([Need(100)], COLD) == 5000


def test_requests_that_ask_for_their_threads_say_nothing_of_what_others_write():
    admission = Admission()
    admission.learn(Need(300, 4, 100))
    assert admission.expected_tokens([Need(4000, 16, 250, asked=16)], COLD) == 300


# ---- requests that say themselves how they fork --------------------------------------------


def test_a_request_that_asks_for_threads_is_expected_to_need_all_of_them():
    admission = taught()
    asked, plain = admission.future(Need(asked=16), 32), admission.future(Need(), 32)
    assert asked.growth == pytest.approx(0.8 * 16 * (admission.thread_tokens.mean / 32 + 1))
    assert asked.steps == admission.thread_tokens.mean
    assert asked.growth > 4 * plain.growth
    assert admission.future(Need(asked=16, max_tokens=64), 32).growth == pytest.approx(0.8 * (64 / 32 + 16))


def test_requests_that_ask_for_many_threads_start_one_behind_the_other():
    admission, room = taught(), replace(ROOM, num_free=200)
    running = [Need(blocks=2, asked=16)]
    assert not admission.admits(Need(blocks=2, asked=16), running, room)
    assert admission.admits(Need(blocks=2), running, room)


def test_wide_requests_are_counted_as_half_of_the_slots_at_most():
    plenty = replace(ROOM, num_free=10**6, num_slots=8)
    admission = Admission()
    assert admission.admits(Need(asked=64), [Need(asked=64)], plenty)
    assert not admission.admits(Need(asked=64), [Need(asked=64)] * 2, plenty)


def test_what_threads_that_are_asked_for_need_is_learnt_apart_from_the_models_forks():
    admission = taught()
    before = admission.tokens.mean, admission.width.mean, admission.parallelism.mean, admission.forks.mean
    admission.learn(Need(1600, 16, 100, asked=16))
    assert admission.thread_tokens.mean == 100
    assert before == (
        admission.tokens.mean, admission.width.mean, admission.parallelism.mean, admission.forks.mean
    )  # fmt: skip


def test_what_an_evicted_family_has_lost_is_kept_free_for_it_and_frees_nothing():
    admission = taught()
    there, evicted = Need(100, 4, 50, blocks=20), Need(100, 4, 50, lost=20)
    assert admission.future(evicted, 32).growth == admission.future(there, 32).growth + 20
    assert admission.future(evicted, 32).held == 0


# ---- what has lost blocks asks again -------------------------------------------------------


def test_a_family_that_has_lost_blocks_asks_for_them_as_a_new_one_does():
    new, room = readmission(Need(100, 4, 50, blocks=5, lost=19.5), ROOM)
    assert new == Need(100, 4, 50, blocks=25)
    assert room == replace(ROOM, num_free=ROOM.num_free + 5)
