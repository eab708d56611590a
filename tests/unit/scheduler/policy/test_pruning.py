"""Which threads of a vote a pruning policy stops, by the facts, and how these are gathered."""

from __future__ import annotations

import math
import re
import statistics
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkjoin_scheduler.families.family import Branch, BranchState
from forkjoin_scheduler.families.fork import ThreadPlan
from forkjoin_scheduler.families.pruner import Confidence, Pruner
from forkjoin_scheduler.families.thread_end import ThreadEnd
from forkjoin_scheduler.families.vote import Vote
from forkjoin_scheduler.policy.own import WrongAnswer
from forkjoin_scheduler.policy.pruning import (
    POLICIES,
    Agreement,
    LowConfidence,
    MemoryPressure,
    Pruning,
    ThreadFacts,
    VoteFacts,
    percentile,
)
from forkjoin_scheduler.policy.tally import Tally


def _running(*confidences: float | None, written: int = 100) -> list[ThreadFacts]:
    return [ThreadFacts(p, written, c, c) for p, c in enumerate(confidences)]


def _ended(*lowest: float) -> list[ThreadFacts]:
    return [ThreadFacts(50 + p, 100, c, c) for p, c in enumerate(lowest)]


def _probed(*probes: str, results: dict[int, str | None] | None = None) -> VoteFacts:
    """Running threads by what their probes said, a letter each (``-``: nothing), and votes that are cast."""
    running = [
        ThreadFacts(p, 100, probes=[None if r == "-" else r for r in said]) for p, said in enumerate(probes)
    ]
    positions = frozenset(range(len(probes)))
    return VoteFacts(running, (), Tally(results or {}, positions), len(probes) + len(results or {}))


THREADS = st.lists(
    st.builds(
        ThreadFacts,
        sibling_index=st.just(0),
        written=st.integers(0, 200),
        confidence=st.none() | st.floats(0, 20),
        lowest=st.none() | st.floats(0, 20),
        probes=st.lists(st.sampled_from(["a", "b", None]), max_size=6),
        holds_kv=st.booleans(),
    ),
    max_size=8,
)


@given(THREADS, THREADS, st.floats(0, 1))
def test_no_policy_stops_a_thread_that_does_not_run(running, ended, free):
    numbered = [
        ThreadFacts(p, t.written, t.confidence, t.lowest, t.probes, t.holds_kv)
        for p, t in enumerate([*running, *ended])
    ]
    running, ended = numbered[: len(running)], numbered[len(running) :]
    tally = Tally({t.sibling_index: "a" for t in ended}, frozenset(t.sibling_index for t in running))
    facts = VoteFacts(running, ended, tally, len(numbered), free)
    for policy in (Pruning, *POLICIES.values()):
        assert policy().stop(facts) <= {t.sibling_index for t in running}
    assert Pruning().stop(facts) == set()


# ---- confidence --------------------------------------------------------------------------------


def test_threads_less_sure_than_nearly_all_that_have_ended_ever_were_are_stopped():
    facts = VoteFacts(_running(3.0, 1.0, 9.0), _ended(2.0, 4.0), num_threads=8)
    assert LowConfidence().stop(facts) == {1}


@pytest.mark.parametrize(
    ("running", "ended", "num_threads"),
    [
        (_running(0.1), _ended(2.0), 2),
        (_running(0.1), _ended(2.0, 4.0), 9),
        (_running(0.1, written=63), _ended(2.0, 4.0), 8),
        (_running(None), _ended(2.0, 4.0), 8),
    ],
    ids=["too_few_to_compare", "a_quarter_has_not_ended", "shorter_than_a_stretch", "unknown"],
)
def test_no_thread_is_stopped_before_enough_is_known(running, ended, num_threads):
    assert LowConfidence().stop(VoteFacts(running, ended, num_threads=num_threads)) == set()


@given(st.lists(st.floats(0, 20), min_size=2, max_size=30))
def test_a_percentile_is_that_of_statistics(values):
    tenths = statistics.quantiles(values, n=10, method="inclusive")
    found = [percentile(sorted(values), tenth / 10) for tenth in range(1, 10)]
    assert found == pytest.approx(tenths, abs=1e-9)


def test_confidence_is_the_mean_of_the_last_tokens_and_its_least_that_of_the_worst_stretch():
    sure = Confidence(2)
    assert (sure.now, sure.least) == (None, None)
    seen = []
    for value in (5.0, 1.0, 3.0, 9.0):
        sure.add(value)
        seen.append((sure.now, sure.least))
    assert seen == [(5.0, 5.0), (3.0, 3.0), (2.0, 2.0), (6.0, 2.0)]


def test_what_can_not_be_sampled_says_nothing_of_how_sure_a_thread_is(byte_tokenizer, threads):
    pruner = Pruner(policy := Recorded(), Vote("a", byte_tokenizer([]), 3))
    nothing = -math.inf
    pruner.wrote(threads[0], [[-1.0, -3.0], [-4.0, nothing], [nothing, nothing]])
    pruner.to_stop(threads, {threads[0]}, lambda _: True, 1.0)
    assert policy.facts.running[0].confidence == 3.0


# ---- agreement ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (_probed("aaa", "baa", "aaa", "bbb"), set()),
        (_probed("aaa", "aaa", "aaa", "bbb", "--b"), {1, 2, 3}),
        (_probed("aaa", "aaa", "aaa", "bbc"), {1, 2, 3}),
        (_probed("aa", "aa", "aa"), set()),
        (_probed("aaa", "aaa", "---"), {1}),
        (_probed("bbb", "aaa", results={2: "a", 3: "a"}), {0, 1}),
        (_probed("aaa", "aaa", "aaa", results={5: "b"}), {2}),
    ],
    ids=[
        "no_majority", "deviates", "deviates_both_ways", "too_early", "silent", "has_voted", "one_voted_otherwise",
    ],
)  # fmt: skip
def test_when_more_than_half_agree_those_that_deviate_stop_and_those_that_agree_in_vain(facts, expected):
    assert Agreement().stop(facts) == expected


@given(st.lists(st.text("ab-", min_size=3, max_size=5), min_size=1, max_size=8), st.text("ab", max_size=4))
def test_what_is_agreed_on_wins_the_vote_of_those_that_are_left(probes, votes):
    """If the threads that go on vote as they say; those that say nothing yet do not."""
    results = {len(probes) + p: r for p, r in enumerate(votes)}
    facts = _probed(*probes, results=results)
    stopped = Agreement().stop(facts)
    if not stopped:
        return
    steady = [said[-1] for said in probes if len(set(said[-3:])) == 1 and said[-1] != "-"]
    agreed = max("ab", key=lambda r: votes.count(r) + steady.count(r))
    left = {p: said[-1] for p, said in enumerate(probes) if p not in stopped and said[-3:] in ("aaa", "bbb")}
    assert Tally(results | left).leader == agreed


# ---- memory ------------------------------------------------------------------------------------


def test_the_least_sure_thread_is_stopped_where_blocks_run_out():
    assert MemoryPressure().stop(VoteFacts(_running(3.0, 1.0, 2.0), free=0.01)) == {1}


@pytest.mark.parametrize(
    ("running", "free"),
    [
        (_running(3.0, 1.0), 0.5),
        (_running(3.0), 0.0),
        ([ThreadFacts(0, 9, 1.0, holds_kv=False), ThreadFacts(1, 9, 2.0)], 0.0),
        (_running(None, None), 0.0),
    ],
    ids=["room", "one", "one_that_holds_blocks", "unknown"],
)
def test_no_thread_is_stopped_where_there_is_room_or_no_other(running, free):
    assert MemoryPressure().stop(VoteFacts(running, free=free)) == set()


# ---- what a policy is told ---------------------------------------------------------------------


class Recorded(Pruning):
    """Stops what it is told to."""

    num_logprobs, window, probe_every = 2, 3, 4

    def __init__(self, *stops: int) -> None:
        self._stops = set(stops)

    def stop(self, facts: VoteFacts) -> set[int]:
        self.facts = facts
        return self._stops


@pytest.fixture
def threads():
    plan = ThreadPlan("1", "", (), ())
    return [Branch(f"r#{p}", plan=plan, index=p, sibling_index=p) for p in range(3)]


def _write(thread: Branch, pruner: Pruner, text: str) -> None:
    for letter in text:
        thread.token_ids.append(ord(letter))
        thread.num_generated += 1
        pruner.wrote(thread, [[-1.0, -3.0]])


def _end(thread: Branch, vote: Vote) -> None:
    thread.state, thread.end = BranchState.ENDED, ThreadEnd.LENGTH
    vote.read(thread)


def test_a_policy_hears_what_threads_wrote_and_would_vote_for(byte_tokenizer, threads):
    vote = Vote(r"=\d", byte_tokenizer([]), 3)
    pruner = Pruner(policy := Recorded(), vote)
    _write(threads[0], pruner, "=1 x=2 y")
    _write(threads[1], pruner, "=3")
    _end(threads[1], vote)
    assert pruner.to_stop(threads, {threads[0], threads[2]}, lambda t: t is threads[0], 0.25) == set()
    first, last = policy.facts.running
    assert (first.written, first.confidence, first.lowest) == (8, 2.0, 2.0)
    assert (first.probes, first.holds_kv) == (("=1", "=2"), True)
    assert (last.written, last.confidence, last.probes, last.holds_kv) == (0, None, (), False)
    assert [t.sibling_index for t in policy.facts.ended] == [1]
    assert (policy.facts.tally.votes, policy.facts.num_threads, policy.facts.free) == ({"=3": 1}, 3, 0.25)


def test_a_policy_stops_what_runs_and_never_the_last_thread_before_one_has_voted(byte_tokenizer, threads):
    vote = Vote(r"=\d", byte_tokenizer([]), 3)
    pruner = Pruner(Recorded(0, 1, 2), vote)
    _write(threads[1], pruner, "ab")
    assert pruner.to_stop(threads, set(threads), lambda _: True, 1.0) == {0, 2}
    assert pruner.to_stop(threads, {threads[0], threads[1]}, lambda _: True, 1.0) == {0, 1}, "one is to start"
    _write(threads[2], pruner, "=1")
    _end(threads[2], vote)
    assert pruner.to_stop(threads, {threads[0], threads[1]}, lambda _: True, 1.0) == {0, 1}


@pytest.mark.parametrize(("index", "got"), [(3, "got 3 in a vote of 3"), (-1, "got -1 in a vote of 3")])
def test_a_policy_that_stops_no_thread_of_the_vote_is_told_so(byte_tokenizer, threads, index, got):
    pruner = Pruner(Recorded(0, index), Vote("a", byte_tokenizer([]), 3))
    with pytest.raises(WrongAnswer, match=f"^expected sibling indices of threads that run, {got}$"):
        pruner.to_stop(threads, set(threads), lambda _: True, 1.0)


def test_a_policy_may_name_threads_that_have_ended(byte_tokenizer, threads):
    vote = Vote("a", byte_tokenizer([]), 3)
    policy = Recorded(0, 1)
    pruner = Pruner(policy, vote)
    _end(threads[0], vote)
    assert pruner.to_stop(threads, set(threads[1:]), lambda _: True, 1.0) == {1}
    assert policy._stops == {0, 1}, "what a policy returned is its own"


@pytest.mark.parametrize("kind", [frozenset, list, tuple], ids=lambda kind: kind.__name__)
def test_a_policy_may_stop_threads_by_any_collection(byte_tokenizer, threads, kind):
    pruner = Pruner(policy := Recorded(), Vote("a", byte_tokenizer([]), 3))
    policy._stops = kind((0, 1, 2))
    assert pruner.to_stop(threads, set(threads), lambda _: True, 1.0) == {1, 2}, "one is to vote"
    policy._stops = kind((0, 7))
    with pytest.raises(WrongAnswer, match="got 7 in a vote of 3"):
        pruner.to_stop(threads, set(threads), lambda _: True, 1.0)


def test_what_a_policy_counts_in_is_asked_once(byte_tokenizer, threads):
    pruner = Pruner(policy := Recorded(), Vote(r"=\d", byte_tokenizer([]), 3))
    policy.num_logprobs = policy.window = policy.probe_every = None
    _write(threads[0], pruner, "=1")
    assert pruner.num_logprobs == Recorded.num_logprobs


@pytest.mark.parametrize(
    ("name", "value", "least"), [("num_logprobs", -1, 0), ("window", 0, 1), ("probe_every", -32, 0)]
)
def test_a_policy_that_counts_in_negative_numbers_is_told_so(byte_tokenizer, name, value, least):
    policy = Recorded()
    setattr(policy, name, value)
    with pytest.raises(WrongAnswer, match=f"^{name}: expected a whole number from {least} on, got {value}$"):
        Pruner(policy, Vote("a", byte_tokenizer([]), 3))


@pytest.mark.parametrize(
    ("num_generated", "num_running", "free", "is_due"),
    [(15, 2, 0.0, False), (16, 2, 0.0, True), (16, 3, 0.0, False), (16, 2, 0.5, False)],
    ids=["too_soon", "due", "others_are_behind", "no_pressure"],
)
def test_a_policy_is_asked_every_so_many_tokens_of_each_thread(num_generated, num_running, free, is_due):
    policy = Recorded()
    policy.ask_below = 0.5
    pruner = Pruner(policy, Vote("a", None, 3))
    assert pruner.is_due(num_generated, num_running, free) is is_due
    assert pruner.is_due(num_generated, num_running, free) is False, "it has been asked, or is not due"


def test_the_policy_that_the_guide_shows_stops_what_it_says():
    guide = (Path(__file__).parents[4] / "docs/scheduling.md").read_text()
    (block,) = (b for b in re.findall(r"```python\n(.*?)```", guide, flags=re.S) if "Pruning" in b)
    shown: dict[str, type[Pruning]] = {}
    exec(block, shown)
    running = [ThreadFacts(0, 5), ThreadFacts(1, 9)]
    assert shown["Longest"]().stop(VoteFacts(running, _ended(1.0, 1.0), num_threads=4)) == {1}
    assert shown["Longest"]().stop(VoteFacts(running, _ended(1.0), num_threads=4)) == set()
