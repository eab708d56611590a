"""Where a vote stands, against a brute-force oracle, and votes that end early against waiting for all."""

from __future__ import annotations

import random
from collections import Counter
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkjoin_scheduler.policy.tally import Tally

#: Simulated votes.
NUM_VOTES = 10_000


def _answer(results: list[str | None]) -> tuple[int, str | None]:
    """Which thread is the answer of a whole vote, and its result: worked out another way than ``Tally``."""
    most = max(Counter(r for r in results if r is not None).values(), default=0)
    for position, result in enumerate(results):
        if result is not None and results.count(result) == most:
            return position, result
    return 0, None


@given(st.lists(st.sampled_from(["a", "b", "c", None]), min_size=1, max_size=9))
def test_the_answer_is_the_first_thread_whose_result_most_have(results):
    tally = Tally(dict(enumerate(results)))
    assert (tally.winner, tally.leader) == _answer(results)


@given(
    st.lists(st.sampled_from(["a", "b", None, "?"]), min_size=1, max_size=7),
    st.randoms(use_true_random=False),
)
def test_a_vote_is_settled_exactly_when_no_votes_of_the_others_change_its_answer(shape, chance):
    """``?`` is open. All that the open ones may say is tried: no vote, known results, and new ones."""
    open_ = frozenset(p for p, r in enumerate(shape) if r == "?")
    ended = [(p, r) for p, r in enumerate(shape) if r != "?"]
    chance.shuffle(ended)  # the order in which they ended says nothing
    answers = set()
    for said in product(["a", "b", "new", None], repeat=len(open_)):
        votes = dict(zip(sorted(open_), said, strict=True))
        answers.add(_answer([votes.get(p, r) for p, r in enumerate(shape)]))
    tally = Tally(dict(ended), open_)
    # Before anybody has voted, all that is left may be silent, or not.
    assert tally.is_settled == (len(answers) == 1), answers
    if tally.is_settled:
        assert (tally.winner, tally.leader) == next(iter(answers))


def _early(texts: list[str | None], order: list[int]) -> tuple[Tally, int]:
    """Let threads end in ``order`` until the vote is settled; how it stands then, and how many have ended."""
    results: dict[int, str | None] = {}
    for num_ended, position in enumerate(order, 1):
        results[position] = texts[position]
        tally = Tally(dict(results), frozenset(order[num_ended:]))
        if tally.is_settled:
            return tally, num_ended
    raise AssertionError("a vote that all have cast is settled")


def test_votes_that_end_early_have_the_winner_index_and_result_of_waiting_for_all():
    chance, ended, saved = random.Random(13), 0, 0
    for _ in range(NUM_VOTES):
        num_threads, num_results = chance.randint(1, 32), chance.randint(1, 6)
        weights = [chance.random() ** 2 for _ in range(num_results + 1)]
        results = [*map(str, range(num_results)), None]
        texts = chance.choices(results, weights, k=num_threads)
        order = chance.sample(range(num_threads), num_threads)
        if chance.random() < 0.5:  # as where threads queue for a slot
            order.sort()
        tally, num_ended = _early(texts, order)
        assert (tally.winner, tally.leader) == _answer(texts)
        ended += num_ended
        saved += num_threads - num_ended
    assert saved > 0.1 * (ended + saved), "hardly any ended early"


@pytest.mark.parametrize(
    ("results", "open_", "is_settled"),
    [
        ({0: "a", 1: "a"}, {2}, True),
        ({0: "a", 1: "a"}, {2, 3}, True),
        ({1: "a", 2: "a"}, {0}, False),
        ({0: "a", 1: "b", 2: "a"}, {3}, True),
        ({0: "b", 1: "a", 2: "a"}, {3}, False),
        ({0: "a"}, {1, 2}, False),
        ({0: None, 1: None}, {2}, False),
        ({0: None, 1: "a"}, {2}, True),
        ({}, {0}, False),
        ({0: None}, set(), True),
    ],
    ids=[
        "majority", "tie_that_stands_first", "one_before_may_be_shown", "tie_won", "tie_lost", "open", "silent",
        "one_behind_a_vote", "none_has_ended", "all_have",
    ],
)  # fmt: skip
def test_a_tie_settles_a_vote_only_where_it_is_won_by_position(results, open_, is_settled):
    assert Tally(results, frozenset(open_)).is_settled is is_settled


def test_a_thread_that_was_cut_has_no_vote():
    assert Tally({0: "a", 2: "b", 3: "b"}).winner == 2
