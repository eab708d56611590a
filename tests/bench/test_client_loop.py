"""The loops, driven by a stand-in that goes on from every context as the trace does."""

from __future__ import annotations

import asyncio

import pytest

from forkjoin_bench.comparison.traffic import Load, drive
from forkjoin_bench.inputs.script import digest, find
from forkjoin_bench.inputs.traces import make_trace
from forkjoin_bench.systems.base import ask
from forkjoin_bench.systems.client_loop import ClientLoop


class Scripted:
    """Text in, text out; knows one family, or samples of it."""

    engine = None

    def __init__(self, family, tokenizer, *more) -> None:
        contexts = [c for known in (family, *more) for c in known.contexts]
        self._script = {c.digest: tokenizer.decode(list(c.continuation)) for c in contexts}
        self._tokenizer = tokenizer
        self.asked = 0
        self.at_once = self.most_at_once = 0

    def encode(self, text: str) -> str:
        return text

    def decode(self, text: str) -> str:
        return text

    async def complete(self, context, max_tokens, stops, seed, answer):
        self.asked += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0)
        self.at_once -= 1
        known_by = digest(self._tokenizer.encode(context))
        text = find(self._script, known_by, seed)
        if text is None:
            raise KeyError(known_by)
        ends = [text.index(s) + len(s) for s in stops if s in text]
        return text[: min(ends, default=len(text))]


@pytest.mark.parametrize("trace", ["tiny", "8x64", "fork-heavy", "nested", "plain"])
def test_the_loop_writes_the_whole_transcript(trace, words, compile_, tokenizer):
    (family,) = map(compile_, make_trace(trace, 1, words))
    answer = asyncio.run(ask(ClientLoop("loop", Scripted(family, tokenizer)), family, 10))
    assert answer.error is None
    assert answer.is_right


def test_threads_are_asked_for_at_once(words, compile_, tokenizer):
    (family,) = map(compile_, make_trace("8x64", 1, words))
    completer = Scripted(family, tokenizer)
    asyncio.run(ask(ClientLoop("loop", completer), family, 10))
    assert (completer.asked, completer.most_at_once) == (10, 8)


def test_a_wrong_answer_says_where_it_parts(family, tokenizer, compile_, words):
    (other,) = map(compile_, make_trace("tiny", 1, words))
    answer = asyncio.run(ask(ClientLoop("loop", Scripted(other, tokenizer)), family, 10))
    assert not answer.is_right
    assert "KeyError" in str(answer.error)


def test_a_gate_lets_so_many_families_in(family, tokenizer):
    completer = Scripted(family, tokenizer)
    load = Load("all", 6, concurrency=6)
    outcome = asyncio.run(drive(ClientLoop("loop", completer, max_families=1), load, [family] * 6, 10))
    assert all(a.is_right for a in outcome.answers)
    assert completer.most_at_once == 2


def test_a_load_mixes_plain_requests_the_same_way_each_time(family, compile_, words):
    plain = [compile_(f) for f in make_trace("plain", 3, words)]
    load = Load("mixed", 2, concurrency=2, num_plain=3)
    order = load.order([family, family], plain)
    assert order == load.order([family, family], plain)
    assert len(order) == 5


class AskedOnce:
    """Answers each sample of a group with one of its texts."""

    name, engine = "asked once", None

    def __init__(self, texts) -> None:
        self.texts, self.num_asked = texts, 0

    async def text_of(self, family, answer):
        raise AssertionError("expected one request for the group")

    async def texts_of(self, samples, answers):
        self.num_asked += 1
        self.asked_for = list(samples)
        if not self.texts:
            raise RuntimeError("refused")
        answers[0].ended = answers[0].began
        return self.texts


def asked_as_group(system, samples):
    load = Load("group", 3, concurrency=3, is_group=True)
    return asyncio.run(drive(system, load, load.order(samples, []), 10))


def test_a_system_that_can_is_asked_once_for_a_group_and_each_sample_is_judged(samples):
    first, _, third = (sample.text for sample in samples)
    system = AskedOnce([first, third, third])
    outcome = asked_as_group(system, samples)
    assert system.num_asked == 1
    assert system.asked_for == samples
    assert [a.is_right for a in outcome.answers] == [True, False, True]
    assert outcome.answers[1].error.startswith("wrote 'w<Parallel>")
    first, *others = [a.seconds for a in outcome.answers]
    assert first == 0
    assert all(0 < seconds <= outcome.wall_s for seconds in others)


def test_a_group_that_is_refused_is_an_error_of_each_sample(samples):
    outcome = asked_as_group(AskedOnce([]), samples)
    assert [a.error for a in outcome.answers] == ["RuntimeError: refused"] * 3
    assert not any(a.is_right for a in outcome.answers)


def test_a_loop_is_asked_for_each_sample_of_a_group(samples, tokenizer):
    completer = Scripted(samples[0], tokenizer, *samples[1:])
    outcome = asked_as_group(ClientLoop("loop", completer), samples)
    assert [a.error for a in outcome.answers] == [None] * 3
    assert [a.family for a in outcome.answers] == ["small0", "small1", "small2"]


def test_arrivals_lie_within_their_time_and_in_order():
    delays = Load("burst", 5, within_s=2.0).delays(5)
    assert delays == sorted(delays)
    assert 0 <= delays[0] <= delays[-1] <= 2
