"""Drafts looked up in the texts of a family."""

from __future__ import annotations

import random

import pytest

from forkjoin_scheduler.lookup import Lookup


def test_what_stands_behind_the_same_tokens_in_another_text_is_a_draft():
    lookup = Lookup(2, 3)
    lookup.follow("a", [1, 2, 3, 4, 5, 6])
    assert lookup.find([9, 2, 3], 2) == [4, 5]
    assert lookup.find([9, 2, 3], 9) == [4, 5, 6]
    assert lookup.find([5, 6], 3) == []  # nothing is behind it
    assert lookup.find([3], 3) == []


def test_the_most_equal_tokens_count_first():
    lookup = Lookup(1, 3)
    lookup.follow("a", [1, 2, 3, 7])
    lookup.follow("b", [5, 3, 8, 8, 8, 8])
    assert lookup.find([1, 2, 3], 4) == [7]
    assert lookup.find([4, 4, 3], 4) == [8, 8, 8, 8]


def test_of_two_that_write_alike_the_one_that_is_ahead_is_copied():
    lookup = Lookup(2, 2)
    lookup.follow("ahead", [1, 2, 3, 4, 5])
    lookup.follow("behind", [1, 2, 3])
    assert lookup.find([1, 2], 3) == [3, 4, 5]


def test_a_text_that_is_taken_back_stays_known_and_another_begins():
    lookup = Lookup(2, 2)
    lookup.follow("a", [1, 2, 3, 4])
    lookup.follow("a", [1, 2, 7, 8, 9])
    assert lookup.find([2, 3], 1) == [4]
    assert lookup.find([7, 8], 1) == [9]


def test_what_stands_before_the_start_is_somebody_elses():
    lookup = Lookup(2, 2)
    lookup.follow("a", [1, 2, 3, 4, 5, 6], start=3)
    assert lookup.find([1, 2], 1) == []
    assert lookup.find([4, 5], 1) == [6]


@pytest.mark.parametrize("seed", range(20))
def test_in_pieces_it_is_as_at_once(seed):
    chance = random.Random(seed)
    text = chance.choices(range(3), k=60)
    at_once, in_pieces = Lookup(2, 4), Lookup(2, 4)
    at_once.follow("a", text)
    at = 0
    while at < len(text):
        at += chance.randint(0, 5)
        in_pieces.follow("a", text[:at])
    for end in range(4, 60):
        found = in_pieces.find(text[:end], 5)
        assert found == at_once.find(text[:end], 5)
        assert any(text[i : i + len(found)] == found for i in range(60))
