from __future__ import annotations

import random

import pytest

from forkjoin_bench.inputs.traces import SHAPES, Family, forks_in, make_samples, make_trace
from forkjoin_bench.inputs.words import Words


def test_words_are_as_many_tokens_as_asked_for(words, tokenizer):
    assert len(tokenizer.encode(words.text(random.Random(1), 37))) == 37


@pytest.mark.parametrize("name", SHAPES)
def test_a_trace_is_the_same_each_time_and_another_with_another_seed(name, words):
    assert make_trace(name, 2, words) == make_trace(name, 2, words)
    assert make_trace(name, 2, words) != make_trace(name, 2, words, seed=2)


@pytest.mark.parametrize("name", SHAPES)
def test_more_families_leave_the_first_as_they_were(name, words):
    assert make_trace(name, 3, words)[:2] == make_trace(name, 2, words)


@pytest.mark.parametrize("name", SHAPES)
def test_every_family_has_a_prompt_of_its_own(name, words):
    assert len({f.prompt for f in make_trace(name, 8, words)}) == 8


@pytest.mark.parametrize("name", SHAPES)
def test_the_text_of_every_family_has_the_tokens_of_its_parts(name, words, compile_):
    for family in make_trace(name, 4, words):
        assert compile_(family).token_ids


@pytest.mark.parametrize("name", SHAPES)
def test_samples_have_one_prompt_and_one_shape_and_each_its_own_words(name, words, compile_):
    (family,) = make_trace(name, 1, words)
    samples = make_samples(name, 4, words)
    assert samples[:2] == make_samples(name, 2, words)
    assert [s.prompt for s in samples] == [family.prompt] * 4
    compiled = [compile_(s) for s in samples]
    assert len({c.text for c in compiled}) == 4
    forks = [compile_(family).forks, *(c.forks for c in compiled)]
    shapes = [[(f.fork_len, f.thread_tokens) for f in of_one] for of_one in forks]
    assert shapes == [shapes[0]] * 5
    contexts = [c.digest for of_one in compiled for c in of_one.contexts]
    assert len(set(contexts)) == len(contexts)


@pytest.mark.parametrize(
    ("name", "widths", "lengths"),
    [
        ("8x64", {8}, {64}),
        ("fork-heavy", {8}, range(4, 17)),
        ("npr-wide", {5}, range(64, 129)),
        ("plain", set(), ()),
    ],
)
def test_forks_are_as_wide_and_threads_as_long_as_published(name, widths, lengths, words, tokenizer):
    for family in make_trace(name, 3, words):
        forks = list(forks_in(family.body))
        assert {len(f.threads) for f in forks} == widths
        assert all(len(tokenizer.encode(t.body[0])) in lengths for f in forks for t in f.threads)


@pytest.mark.parametrize("name", SHAPES)
def test_a_trace_has_one_shape_whatever_the_tokenizers_words_are(name, words, tokenizer):
    class OneWord(Words):
        def text(self, rng: random.Random, num_tokens: int) -> str:
            return "x" * num_tokens

    def shape(family: Family) -> list[int]:
        return [len(t.body[0]) for fork in forks_in(family.body) for t in fork.threads]

    for one, other in zip(make_trace(name, 3, words), make_trace(name, 3, OneWord(tokenizer)), strict=True):
        assert shape(one) == shape(other)


def test_nested_forks_are_three_deep(words):
    (family,) = make_trace("nested", 1, words)
    assert max(t.number.count(".") for f in forks_in(family.body) for t in f.threads) == 2
