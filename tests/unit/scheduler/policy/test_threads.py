from __future__ import annotations

from collections import Counter
from itertools import chain, combinations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkjoin_scheduler.policy.fair_share import fair_shares
from forkjoin_scheduler.policy.step_cost import NOTHING, Load, StepCost
from forkjoin_scheduler.policy.threads import Capped, Eager, Slack, StepFacts, ThreadFacts, ranked, within


class Known(StepCost):
    """A step takes 1 s, 1 s more each sequence and 1 ms each token that it reads."""

    is_ready = True

    def predict(self, load):
        return 1.0 + load.num_sequences + 1e-3 * load.num_context


def threads_of(draw_context):
    def build(rows):
        return [
            ThreadFacts(str(i), family, written, context, has_slot)
            for i, (family, written, context, has_slot) in enumerate(rows)
        ]

    return st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(0, 9), draw_context, st.booleans()), max_size=8
    ).map(build)


THREADS = threads_of(st.just(0))
DEMANDS = st.dictionaries(st.sampled_from("abcd"), st.integers(0, 5), max_size=4)
#: Those that have a slot have one: there are never more of them than slots.
FACTS = st.builds(
    lambda threads, more, waiting: StepFacts(
        threads, num_slots=sum(t.has_slot for t in threads) + more, num_others_waiting=waiting
    ),
    THREADS,
    st.integers(0, 4),
    st.integers(0, 4),
)


def subsets(items):
    return chain.from_iterable(combinations(items, n) for n in range(len(items) + 1))


def family_of(facts, keys):
    return Counter(t.family for t in facts.threads if t.key in keys)


# ---- fair shares -------------------------------------------------------------------------------


@given(DEMANDS, st.integers(0, 20))
def test_of_all_ways_to_share_none_gives_the_worst_off_more(demands, num_slots):
    shares = fair_shares(demands, num_slots)
    possible = (
        sorted(way) for way in product(*(range(d + 1) for d in demands.values())) if sum(way) <= num_slots
    )
    assert sorted(shares.values()) == max(possible)
    assert all(shares[key] <= demand for key, demand in demands.items())


def test_what_an_even_split_leaves_goes_to_the_first():
    assert fair_shares({"a": 5, "b": 5, "c": 1}, 6) == {"a": 3, "b": 2, "c": 1}


# ---- eager -------------------------------------------------------------------------------------


def test_all_threads_run_as_long_as_there_are_slots():
    facts = StepFacts([ThreadFacts(str(i), "a") for i in range(5)], Load(2, 2), None, 8, 1)
    assert Eager().choose(facts) == set("01234")


def test_a_wide_fork_leaves_a_slot_to_each_that_wants_one():
    wide = [ThreadFacts(f"w{i}", "wide") for i in range(10)]
    facts = StepFacts([*wide, ThreadFacts("n", "narrow")], Load(1, 1), None, 6, 2)
    chosen = Eager().choose(facts)
    assert family_of(facts, chosen) == {"wide": 2, "narrow": 1}


@given(FACTS)
def test_who_has_a_slot_keeps_it(facts):
    chosen = Eager().choose(facts)
    assert {t.key for t in facts.threads if t.has_slot} <= chosen


@given(FACTS)
def test_threads_start_only_up_to_their_familys_fair_share(facts):
    chosen = Eager().choose(facts)
    started = [t for t in facts.threads if t.key in chosen and not t.has_slot]
    wants = Counter(t.family for t in facts.threads)
    shares = fair_shares({**wants, **dict.fromkeys(range(facts.num_others_waiting), 1)}, facts.num_slots)
    is_crowded = len(facts.threads) + facts.num_others_waiting > facts.num_slots
    for family in {t.family for t in started} if is_crowded else ():
        assert family_of(facts, chosen)[family] <= shares[family]


# ---- capped ------------------------------------------------------------------------------------


@given(FACTS, st.integers(1, 4))
def test_no_family_has_more_threads_than_the_cap_and_none_stands_still(facts, cap):
    chosen = Capped(cap).choose(facts)
    fair = Eager().choose(facts)
    assert chosen <= fair
    by_family, could = family_of(facts, chosen), family_of(facts, fair)
    assert by_family == {family: min(n, cap) for family, n in could.items()}


def test_a_thread_that_runs_goes_before_one_that_would_start():
    facts = StepFacts([ThreadFacts("new", "a"), ThreadFacts("runs", "a", has_slot=True)])
    assert Capped(1).choose(facts) == {"runs"}


def test_a_cap_of_one_family_leaves_the_others_as_they_were_chosen():
    threads = [ThreadFacts(f"{family}{n}", family, has_slot=n == 2) for family in "ab" for n in range(3)]
    chosen = {"a0", "a2", "b0", "b1"}
    assert within({"a": 1}, threads, chosen) == {"a2", "b0", "b1"}
    assert within({"a": 5}, threads, chosen) == chosen


# ---- slack -------------------------------------------------------------------------------------


def slack(target=100.0):
    """One that spends in a step all that the first stream is ahead."""
    return Slack(Known(), target, spread=1)


@given(THREADS, st.integers(0, 3), st.floats(-5, 12))
def test_of_all_sets_in_time_none_is_larger_nor_of_its_size_further_behind(threads, num_others, seconds):
    facts = StepFacts(threads, Load(num_others, num_others), seconds)
    chosen = slack().choose(facts)
    by_key = {t.key: t for t in threads}
    families = {t.family for t in threads}
    assert {by_key[k].family for k in chosen} == families
    in_time = [
        keys
        for keys in subsets(sorted(by_key))
        if {by_key[k].family for k in keys} == families and 1.0 + num_others + len(keys) <= seconds
    ]
    if not in_time:
        assert len(chosen) == len(families)  # nobody stands still, though all are late
        return
    largest = max(map(len, in_time))
    assert len(chosen) == largest
    # Of one rank, the furthest behind: no other of the size has them further behind in every family.
    for family in families:
        taken = sorted(t.written for t in threads if t.family == family and t.key in chosen)
        own = sorted(t.written for t in threads if t.family == family)
        assert taken == own[: len(taken)]


@given(threads_of(st.integers(0, 4000)), st.floats(-5, 12))
def test_a_step_that_is_predicted_to_be_late_has_one_thread_of_a_family(threads, seconds):
    chosen = slack().choose(StepFacts(threads, NOTHING, seconds))
    load = NOTHING
    for thread in threads:
        load = load.plus(thread.context) if thread.key in chosen else load
    families = {t.family for t in threads}
    assert Known().predict(load) <= seconds or len(chosen) == len(families)


@given(THREADS)
def test_without_a_deadline_or_a_cost_all_run(threads):
    keys = {t.key for t in threads}
    assert slack().choose(StepFacts(threads, slack=None)) == keys
    assert Slack(StepCost(), 1.0).choose(StepFacts(threads, slack=0.0)) == keys


def test_what_cannot_be_kept_is_not_waited_for():
    threads = [ThreadFacts(str(i), "a") for i in range(4)]
    assert slack(target=1.5).choose(StepFacts(threads, slack=0.0)) == set("0123")
    assert slack(target=2.0).choose(StepFacts(threads, slack=0.0)) == {"0"}


def test_what_a_stream_is_ahead_or_behind_is_spread_over_steps():
    policy, threads = Slack(Known(), 4.0, spread=4), [ThreadFacts(str(i), "a") for i in range(9)]

    def num_chosen(seconds):
        return len(policy.choose(StepFacts(threads, slack=seconds)))

    assert num_chosen(4.0) == 3  # just in time: 1 s, and 1 s for each of three
    assert num_chosen(7.9) == 3
    assert num_chosen(8.0) == 4  # 4 s ahead, a fourth of it in this step
    assert num_chosen(0.0) == 2  # 4 s behind
    assert num_chosen(-99.0) == 1


def test_families_get_their_other_threads_one_after_the_other_the_first_come_first():
    threads = [
        ThreadFacts(f"{family}{n}", family, written=n, turn=turn)
        for family, turn in (("late", (0, 9.0)), ("first", (0, 2.0)))
        for n in range(3)
    ]
    chosen = slack().choose(StepFacts(threads, slack=6.0))  # 1 s, and five threads
    assert chosen == {"first0", "first1", "first2", "late0", "late1"}


@given(THREADS, st.floats(-100, 100), st.floats(0, 100), st.integers(1, 32))
def test_who_is_further_ahead_has_no_fewer_run(threads, seconds, more, spread):
    policy = Slack(Known(), 5.0, spread)
    assert policy.choose(StepFacts(threads, slack=seconds)) <= policy.choose(
        StepFacts(threads, slack=seconds + more)
    )


@given(THREADS, st.integers(1, 32))
def test_in_time_all_run_that_fit_into_the_target(threads, spread):
    policy = Slack(Known(), 1.0 + len(threads), spread)
    keys = {t.key for t in threads}
    assert policy.choose(StepFacts(threads, slack=policy.target)) == keys


def test_a_step_that_brings_several_tokens_may_take_as_many_targets():
    threads = [ThreadFacts(str(i), "a") for i in range(4)]
    late = StepFacts(threads, slack=0.0, tokens_a_step=2.0)
    assert slack(target=1.0).choose(late) == {"0"}  # 2 s for one sequence: kept, with 2 tokens a step
    assert slack(target=0.9).choose(late) == set("0123")


def test_a_thread_counts_with_all_tokens_that_its_step_computes():
    class ByTokens(Known):
        def predict(self, load):
            return float(load.num_tokens)

    policy = Slack(ByTokens(), 100.0, spread=1)
    plain = [ThreadFacts(str(i), "a") for i in range(4)]
    drafted = [ThreadFacts(str(i), "a", computes=3) for i in range(4)]
    assert policy.choose(StepFacts(plain, slack=6.0)) == set("0123")
    assert policy.choose(StepFacts(drafted, slack=6.0)) == set("01")


@given(THREADS)
def test_ranks_count_each_familys_threads_from_the_one_furthest_behind(threads):
    pairs = ranked(threads)
    assert sorted(t.key for _, t in pairs) == sorted(t.key for t in threads)
    assert [rank for rank, _ in pairs] == sorted(rank for rank, _ in pairs)
    for family in {t.family for t in threads}:
        own = [(rank, t.written) for rank, t in pairs if t.family == family]
        assert [rank for rank, _ in own] == list(range(len(own)))
        assert [w for _, w in own] == sorted(w for _, w in own)


def test_one_that_has_a_slot_ranks_before_one_as_far_behind():
    threads = [ThreadFacts("a", "f", 3), ThreadFacts("b", "f", 3, has_slot=True)]
    assert [t.key for _, t in ranked(threads)] == ["b", "a"]


@pytest.mark.parametrize("policy", [Eager(), Capped(2), slack()], ids=["eager", "capped", "slack"])
def test_no_threads_no_choice(policy):
    assert policy.choose(StepFacts([], slack=1.0)) == set()
