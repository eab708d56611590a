from __future__ import annotations

import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forkjoin_scheduler.policy.step_cost import Load, StepCost

#: Seconds: of every step, of a sequence, of a token, of a token of context.
TRUE = (10e-3, 0.5e-3, 0.3e-3, 1e-6)
COEFFICIENTS = st.tuples(*(st.floats(low, high) for low, high in [(0, 0.1), (0, 0.01), (0, 0.01), (0, 1e-5)]))


def seconds_of(load, coefficients=TRUE):
    parts = (1, load.num_sequences, load.num_tokens, load.num_context)
    return sum(c * p for c, p in zip(coefficients, parts, strict=True))


def loads(num, seed=1):
    """Steps of all kinds: decoding, with chunks of prefill, on short and long contexts."""
    rng = random.Random(seed)
    for _ in range(num):
        n = rng.randint(1, 64)
        yield Load(n, n + rng.choice([0, 0, 64, 512]), n * rng.randint(50, 4000))


def fitted(coefficients=TRUE, num=300, noise=0.0, seed=1):
    cost, rng = StepCost(), random.Random(seed)
    for load in loads(num, seed):
        cost.observe(load, seconds_of(load, coefficients) * (1 + rng.uniform(-noise, noise)))
    return cost


@settings(max_examples=30)
@given(COEFFICIENTS)
def test_it_finds_the_coefficients_that_made_the_steps(coefficients):
    cost = fitted(coefficients)
    for load in loads(50, seed=2):
        assert cost.predict(load) == pytest.approx(seconds_of(load, coefficients), rel=0.02, abs=1e-4)


def test_it_is_close_though_steps_vary_by_a_tenth():
    cost = fitted(num=2000, noise=0.1)
    errors = [abs(cost.predict(load) / seconds_of(load) - 1) for load in loads(50, seed=2)]
    assert statistics.median(errors) < 0.05


def test_what_it_has_seen_it_does_not_overrate_though_sequences_and_context_grow_together():
    cost, rng, steps = StepCost(), random.Random(1), []
    for _ in range(200):
        n = rng.randint(1, 24)
        load = Load(n, n, n * rng.randint(480, 520))
        # Beyond what a context costs each sequence seems to save a little, as it did on the real engine.
        steps.append((load, 7e-3 + 1.2e-6 * load.num_context - 0.3e-3 * n + rng.uniform(0, 1e-3)))
        cost.observe(*steps[-1])
    predicted, took = sum(cost.predict(load) for load, _ in steps), sum(seconds for _, seconds in steps)
    assert predicted == pytest.approx(took, rel=0.03)


def test_a_pause_of_the_machine_changes_nothing():
    cost, rng = StepCost(), random.Random(1)
    for i, load in enumerate(loads(400)):
        is_pause = i > 50 and rng.random() < 0.05
        cost.observe(load, seconds_of(load) * (100 if is_pause else 1))
    for load in loads(50, seed=2):
        assert cost.predict(load) == pytest.approx(seconds_of(load), rel=0.02)


def test_it_is_ready_after_a_few_steps():
    assert not StepCost().is_ready
    assert not fitted(num=15).is_ready
    assert fitted(num=16).is_ready


def test_it_follows_a_machine_that_has_become_slower():
    cost = fitted()
    for load in loads(2000, seed=3):
        cost.observe(load, 2 * seconds_of(load))
    for load in loads(50, seed=2):
        assert cost.predict(load) == pytest.approx(2 * seconds_of(load), rel=0.05)


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.integers(1, 99), st.integers(0, 999), st.floats(0, 10)), min_size=16, max_size=60)
)
def test_more_work_is_never_predicted_to_take_less_time(steps):
    cost = StepCost()
    for sequences, context, seconds in steps:
        cost.observe(Load(sequences, sequences, context), seconds)
    load = Load(4, 4, 100)
    assert 0 <= cost.predict(load) <= cost.predict(load.plus(50)) <= cost.predict(load.plus(50).plus(500))


def test_a_long_time_of_equal_steps_does_not_wear_it_out():
    cost = fitted()
    for _ in range(30_000):
        cost.observe(Load(8, 8, 8000), seconds_of(Load(8, 8, 8000)))
    assert cost.predict(Load(8, 8, 8000)) == pytest.approx(seconds_of(Load(8, 8, 8000)), rel=0.01)
    for load in loads(300, seed=4):
        cost.observe(load, seconds_of(load))
    for load in loads(50, seed=2):
        assert cost.predict(load) == pytest.approx(seconds_of(load), rel=0.02)


def test_a_thread_more_is_a_sequence_and_a_token_more():
    assert Load(2, 70, 100).plus(30) == Load(3, 71, 130)


def test_a_slowdown_that_lasts_is_learnt_and_a_pause_is_not():
    cost, load = StepCost(), Load(4, 4, 1000)
    for _ in range(40):
        cost.observe(load, 0.01)
    cost.observe(load, 2.0)
    assert cost.predict(load) == pytest.approx(0.01, rel=0.05)
    for _ in range(1000):
        cost.observe(load, 0.06)
    assert cost.predict(load) == pytest.approx(0.06, rel=0.05)
