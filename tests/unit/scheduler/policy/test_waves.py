"""How many threads of a vote are started, and how sure a vote is that ends before all have voted."""

from __future__ import annotations

import random
from collections import Counter
from fractions import Fraction
from math import comb, factorial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkjoin_scheduler.policy.tally import Tally
from forkjoin_scheduler.policy.waves import chance, is_decided, num_needed


def _tally(said: str, num_open: int) -> Tally:
    """The votes of the first threads, a letter each (``-``: none); the others stand behind them, open."""
    return Tally(
        {p: None if r == "-" else r for p, r in enumerate(said)},
        frozenset(range(len(said), len(said) + num_open)),
    )


def _beta_binomial(num: int, k: int, a: int, b: int) -> Fraction:
    """The textbook's formula: C(n, k) B(k + a, n - k + b) / B(a, b)."""

    def beta(x: int, y: int) -> Fraction:
        return Fraction(factorial(x - 1) * factorial(y - 1), factorial(x + y - 1))

    return comb(num, k) * beta(k + a, num - k + b) / beta(a, b)


@given(st.text("ab", min_size=1, max_size=9), st.integers(0, 12))
def test_the_chance_is_that_of_the_formula_in_exact_fractions(said, num_open):
    votes = Counter(said)
    tally = _tally(said, num_open)
    leader = tally.leader
    rival = "b" if leader == "a" else "a"
    stands_first = rival not in votes or said.index(leader) < said.index(rival)
    exact = sum(
        _beta_binomial(num_open, k, votes[leader] + 1, votes[rival] + 1)
        for k in range(num_open + 1)
        if (votes[leader] + k, stands_first) > (votes[rival] + num_open - k, False)
    )
    assert chance(tally) == pytest.approx(float(exact), abs=1e-9)


@given(st.text("abc-", max_size=9), st.integers(0, 20))
def test_with_confidence_1_a_vote_is_decided_when_it_is_settled(said, num_open):
    tally = _tally(said, num_open)
    assert is_decided(tally, 1.0) == tally.is_settled
    if tally.is_settled:
        assert is_decided(tally, 0.99)


@given(st.text("abc-", max_size=9), st.integers(0, 20), st.sampled_from([0.6, 0.9, 0.99, 1.0]))
def test_fewer_threads_than_are_needed_do_not_decide_a_vote_and_so_many_do(said, num_open, confidence):
    tally = _tally(said, num_open)
    num = num_needed(tally, confidence)
    assert 0 <= num <= num_open
    assert not any(is_decided(tally.agreeing(fewer), confidence) for fewer in range(num))
    assert is_decided(tally.agreeing(num), confidence)


@pytest.mark.parametrize(
    ("said", "num_open", "confidence", "expected"),
    [
        ("", 16, 1.0, 8),
        ("", 15, 1.0, 8),
        ("", 1, 1.0, 1),
        ("a", 15, 1.0, 7),
        ("ab", 14, 1.0, 7),
        ("ba", 14, 1.0, 7),
        ("aab", 13, 1.0, 6),
        ("--", 14, 1.0, 7),
        ("", 16, 0.95, 3),
        ("", 16, 0.99, 4),
        ("ab", 14, 0.95, 3),
        ("", 256, 0.95, 4),
    ],
)
def test_a_wave_is_as_wide_as_the_votes_so_far_require(said, num_open, confidence, expected):
    assert num_needed(_tally(said, num_open), confidence) == expected


def _vote(texts: list[str | None], confidence: float, chance: random.Random) -> tuple[Tally, int]:
    """Run a vote in waves; how it stands when it is decided, and how many threads have started."""
    results: dict[int, str | None] = {}
    running: list[int] = []
    num_started = 0
    while True:
        tally = Tally(dict(results), frozenset(range(len(texts))) - results.keys())
        if is_decided(tally, confidence):
            return tally, num_started
        more = max(num_needed(tally, confidence) - len(running), 0)
        running += range(num_started, num_started + more)
        num_started += more
        ended = running.pop(chance.randrange(len(running)))
        results[ended] = texts[ended]


@pytest.mark.parametrize(("confidence", "num_votes"), [(0.8, 2000), (0.95, 2000), (1.0, 10_000)])
def test_a_vote_in_waves_has_the_answer_of_all_as_often_as_it_says(confidence, num_votes):
    """From votes that all but agree to those that scatter; with confidence 1, the same thread each time."""
    chance, agreed, started, total = random.Random(13), 0, 0, 0
    for _ in range(num_votes):
        num_threads, num_results = chance.randint(1, 16), chance.randint(1, 6)
        weights = [chance.random() ** 2 for _ in range(num_results + 1)]
        texts = chance.choices([*map(str, range(num_results)), None], weights, k=num_threads)
        tally, num_started = _vote(texts, confidence, chance)
        whole = Tally(dict(enumerate(texts)))
        if confidence == 1:
            assert (tally.winner, tally.leader) == (whole.winner, whole.leader)
        agreed += tally.leader == whole.leader
        started += num_started
        total += num_threads
    assert agreed >= confidence * num_votes
    assert started < 0.85 * total
