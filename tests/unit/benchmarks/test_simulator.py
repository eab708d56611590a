"""The simulator: conservation, determinism, and schedules that can be worked out by hand."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forkjoin_bench.simulator.__main__ import gate_of, main
from forkjoin_bench.simulator.__main__ import num_blocks as blocks_for
from forkjoin_bench.simulator.cluster import LeastLoaded, RoundRobin, SessionAffinity, simulate
from forkjoin_bench.simulator.costs import Linear, fitted
from forkjoin_bench.simulator.engine import Engine
from forkjoin_bench.simulator.foreseen import Foreseen, held_alone
from forkjoin_bench.simulator.gates import AtMost, FamilyAware, Greedy
from forkjoin_bench.simulator.replica.blocks import BlockPool
from forkjoin_bench.simulator.replica.relief import NoRoom
from forkjoin_bench.simulator.replica.replica import Replica
from forkjoin_bench.simulator.replica.sequence import Cause, Kv, Role, State
from forkjoin_bench.simulator.results.measures import Slo, measure, spread, weighted_spread
from forkjoin_bench.simulator.shapes import SHAPES
from forkjoin_bench.simulator.tried import Outlasting, Sure
from forkjoin_bench.simulator.workload import (
    MULTIVERSE,
    PACORE,
    THREADWEAVER,
    Fork,
    Request,
    Spoken,
    at_rate,
    draw,
    in_sessions,
    num_critical,
    num_forks,
    num_generated,
    peak_tokens,
)
from forkjoin_scheduler.errors import UsageError
from forkjoin_scheduler.policy.admission import Need
from forkjoin_scheduler.policy.step_cost import Load, StepCost
from forkjoin_scheduler.policy.threads import Capped, Slack

#: A step takes a second, whatever it computes.
SECONDS = Linear(1.0)
ENGINE = Engine(num_blocks=1000, cost=SECONDS, gate=Greedy)
#: A prompt of 32, a trigger as the 4th token, threads of 3 and 5, 2 more behind the join.
FAMILY = Request(32, (4, Fork(((3,), (5,))), 2))


def ran(requests, engine=ENGINE):
    replica = Replica(engine)
    for request in requests:
        replica.submit(request)
    replica.run()
    return replica


def bodies(depth=2):
    tokens = st.integers(1, 40)
    if not depth:
        return st.tuples(tokens)
    fork = st.lists(bodies(depth - 1), min_size=1, max_size=4).map(lambda threads: Fork(tuple(threads)))
    forking = st.lists(st.tuples(fork, tokens, st.lists(fork, max_size=2)), max_size=2)
    return st.tuples(tokens, forking).map(lambda t: (t[0], *chain.from_iterable(map(_in_stages, t[1]))))


def _in_stages(forking):
    first, tokens, later = forking
    return (first, *(part for fork in later for part in (0, fork)), tokens)


REQUESTS = st.lists(
    st.builds(Request, st.integers(1, 200), bodies(), may_fork=st.booleans()), min_size=1, max_size=8
)
SPOKEN = st.sampled_from([THREADWEAVER, MULTIVERSE, replace(THREADWEAVER, header=1, joined_header=0, join=3)])
POLICIES = st.sampled_from([None, Capped(1), Capped(2)])
TRIED = (lambda: FamilyAware(Sure(1.2)), lambda: FamilyAware(Outlasting()))
GATES = st.sampled_from([Greedy, FamilyAware, lambda: AtMost(2), lambda: Foreseen(THREADWEAVER), *TRIED])


# ---- by hand -----------------------------------------------------------------------------------


def test_a_plain_request_takes_a_step_for_its_prompt_and_one_for_each_token_behind_the_first():
    replica = ran([Request(100, (5,))])
    assert replica.core.counts.num_steps == 5
    assert replica.core.counts.num_computed == 100 + 4
    (family,) = replica.core.counts.ended
    assert (family.first_token_at, family.ended_at) == (1.0, 5.0)


def test_a_family_takes_the_steps_of_its_critical_path():
    # 4 steps to the trigger, 5 of the longest thread from the step behind it on, 2 behind the join.
    replica = ran([FAMILY])
    assert replica.core.counts.num_steps == num_critical(FAMILY.body) == 11


def test_what_a_family_prefills():
    replica = ran([FAMILY], replace(ENGINE, join_ahead_tokens=0))
    prefilled = {cause.value: n for cause, n in replica.core.counts.prefilled.items()}
    # A header of 5 and the trigger for each thread. At the join: what the first wrote last, which has
    # no KV, the second's shorter header and its tokens, and the text behind the threads.
    assert prefilled == {"prompt": 32, "header": 2 * 6, "join": 1 + (4 + 5) + 1}


def test_threads_that_have_ended_are_prefilled_while_a_slower_one_decodes():
    request = Request(32, (4, Fork(((3,), (3,), (40,))), 2))
    plain = ran([request], replace(ENGINE, join_ahead_tokens=0)).core.counts
    ahead = ran([request]).core.counts
    prefilled = {cause.value: n for cause, n in ahead.prefilled.items()}
    assert prefilled["ahead"] == 1 + (4 + 3)
    assert prefilled["join"] == (4 + 40) + 1
    assert ahead.num_steps == plain.num_steps
    assert sum(ahead.prefilled.values()) == sum(plain.prefilled.values())


@pytest.mark.parametrize(("num_short", "num_long", "begins"), [(2, 1, True), (2, 2, False), (14, 2, True)])
def test_threads_are_prefilled_ahead_when_few_are_left(num_short, num_long, begins):
    request = Request(32, (4, Fork(((3,),) * num_short + ((40,),) * num_long), 2))
    counts = ran([request]).core.counts
    ahead = {cause.value: n for cause, n in counts.prefilled.items()}.get("ahead", 0)
    assert ahead == (1 + (num_short - 1) * (4 + 3) if begins else 0)


def test_a_stitched_join_computes_its_text_and_the_threads_last_tokens():
    counts = ran([FAMILY], replace(ENGINE, spoken=Spoken(join=2, is_stitched=True))).core.counts
    prefilled = {cause.value: n for cause, n in counts.prefilled.items()}
    assert prefilled == {"prompt": 32, "header": 2 * 6, "close": 2, "join": 2}
    assert counts.num_steps == num_critical(FAMILY.body) + 1  # the last thread's last token gets its KV


#: Threads of 3 and 5, then one of 2 that sees both, 2 more behind the join.
STAGES = Request(32, (4, Fork(((3,), (5,))), 0, Fork(((2,),)), 2))
#: Two answers of 3 and 5, which make the prompt of one of 2, which makes that of the last.
ROUNDS = Request(32, (0, Fork(((3,), (5,))), 0, Fork(((2,),)), 2))


def test_a_stage_starts_when_the_one_before_it_has_been_joined_and_its_kv_is_there():
    counts = ran([STAGES], replace(ENGINE, join_ahead_tokens=0)).core.counts
    assert (
        counts.num_steps == num_critical(STAGES.body) + 1
    )  # that computes the first join and writes nothing
    prefilled = {cause.value: n for cause, n in counts.prefilled.items()}
    # The later thread begins as a joined one. At the first join as in a fork; at the second the last
    # token of the only thread, and the text behind it.
    assert prefilled == {"prompt": 32, "header": 2 * 6 + 4, "join": 1 + (4 + 5) + 1 + 1 + 1}


def test_each_round_is_a_prompt_of_what_the_last_returned():
    counts = ran([ROUNDS], replace(ENGINE, spoken=PACORE)).core.counts
    # A step for each prompt, whose sample is dropped but for the last.
    assert counts.num_steps == 1 + 5 + 1 + 2 + 2
    prefilled = {cause.value: n for cause, n in counts.prefilled.items()}
    # Each thread computes the prompt's last token again. An end of sequence does not return. The last prompt
    # begins as the one before it did: with words and the request's own, of which 6 blocks of 16 are full.
    prompts = (32 + 70 + (4 + 2) + (4 + 4)) + (32 + 70 + (4 + 1)) - 6 * 16
    assert prefilled == {"prompt": 32, "header": 3, "join": prompts}


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ((4, Fork(((1,),)), 0), "expected at least one token before an end, got 0"),
        ((-1, Fork(((1,),)), 1), "expected no tokens or more before a fork, got -1"),
        ((1, Fork(((0, Fork(((1,),)), 1),)), 1), "expected a thread to write before it forks"),
    ],
)
def test_a_body_that_can_not_be_is_an_error(body, problem):
    with pytest.raises(ValueError, match=problem):
        Request(1, body)


def test_threads_share_the_blocks_of_their_prefix():
    # 1600 of prompt: 100 blocks of 16 and the tail that 8 threads have each of their own.
    request = Request(1600, (1, Fork(tuple((8,) for _ in range(8))), 1))
    assert ran([request]).core.counts.peak_blocks <= 100 + 2 * 8 + 8


def test_a_prompt_is_prefilled_in_chunks_within_the_budget():
    replica = ran([Request(100, (1,))], replace(ENGINE, max_num_seqs=8, max_batched_tokens=40))
    assert replica.core.counts.num_steps == 3


def test_no_more_run_than_there_are_slots():
    replica = ran([Request(16, (10,)) for _ in range(4)], replace(ENGINE, max_num_seqs=2))
    assert replica.core.counts.num_steps == 20
    assert replica.core.counts.num_rows == 40


def test_the_youngest_gives_way_and_finds_what_is_left_of_its_kv():
    # Two of 4 blocks each in 6: the second loses its blocks and gets them again when the first has ended.
    replica = ran([Request(32, (30,)), Request(32, (30,))], replace(ENGINE, num_blocks=6))
    first, second = replica.core.counts.ended
    assert replica.core.counts.num_preempted == 1
    assert (first.number, first.num_preempted, second.num_preempted) == (0, 0, 1)
    assert first.ended_at == 30.0


def test_a_request_that_fits_nowhere_is_an_error():
    with pytest.raises(NoRoom, match="expected every request to fit into 3 blocks"):
        ran([Request(100, (1,))], replace(ENGINE, num_blocks=3))


def test_a_gate_keeps_families_waiting_and_lets_plain_requests_pass():
    requests = [FAMILY, FAMILY, replace(FAMILY, may_fork=False)]
    replica = ran(requests, replace(ENGINE, gate=lambda: AtMost(1)))
    ends = {family.number: family.ended_at for family in replica.core.counts.ended}
    assert ends == {0: 11.0, 1: 22.0, 2: 11.0}


# ---- blocks that were lost -----------------------------------------------------------------------


class AloneAgain(Greedy):
    """Admits all, and what has lost blocks when it is alone. Writes down what it was asked for again."""

    asks_again = True

    def __init__(self):
        self.again = []

    def admits(self, new, request, running, room):
        if not new.generated:
            return True
        self.again.append((new, running.num))
        return not running.num


def test_a_family_that_has_lost_blocks_asks_again_before_it_takes_them_again():
    gate = AloneAgain()
    replica = ran([Request(32, (60,)), Request(32, (60,))], replace(ENGINE, num_blocks=8, gate=lambda: gate))
    first, second = replica.core.counts.ended
    (new, *others) = {new for new, _ in gate.again}
    assert not others
    assert new.lost == 0
    assert new.blocks == -(-(32 + new.generated) // 16)
    assert (first.num_preempted, second.num_preempted) == (0, 1)
    assert second.ended_at == 60 + (60 - new.generated)


def test_a_family_that_only_waits_gives_way_before_an_older_one_loses_blocks():
    # Two of five blocks of prompt, with threads of four blocks each at their ends: 26 with the joined context.
    family = Request(80, (4, Fork(((64,), (64,))), 8))
    lost = {}
    for name, gate in (("asks again", AloneAgain), ("greedy", Greedy)):
        counts = ran([family] * 2, replace(ENGINE, num_blocks=16, gate=gate)).core.counts
        first = min(counts.ended, key=lambda f: f.number)
        lost[name] = first.num_preempted
    assert lost["asks again"] == 0 < lost["greedy"]


@pytest.mark.parametrize("closes", [False, True])
def test_a_family_gives_way_unless_its_join_computes_what_an_ended_thread_lacks(closes):
    replica = Replica(replace(ENGINE, spoken=MULTIVERSE, gate=AloneAgain))
    for _ in range(2):
        replica.submit(Request(64, (4, Fork(((60,), (60,))), 2)))
    replica.run(until=10.0)
    core = replica.core
    young = [s for s in core.running if s.family.number == 1]
    for thread in young:
        replica._preempt(thread)
    if closes:
        parent = young[0].parent
        core.fill(parent, 0, Role.CLOSE, Cause.CLOSE, Kv(), parent.tokens + 1)
    replica._relief.make_way()
    assert core.counts.num_evicted == (not closes)


def test_new_threads_of_a_family_that_has_lost_blocks_start_on_those_of_their_parent():
    nested = Request(32, (4, Fork(((9, Fork(((20,), (20,))), 1), (60,))), 2))
    replica = Replica(replace(ENGINE, gate=AloneAgain))
    replica.submit(Request(32, (200,)))
    replica.submit(nested)
    replica.run(until=8.0)
    core, family = replica.core, list(replica.core.families)[1]
    first, second = [s for s in core.running if s.role is Role.THREAD]
    replica._preempt(second)
    replica.run(until=18.0)
    assert list(core.lost_blocks) == [family]
    assert second.state is State.WAITING
    assert [s.parent for s in core.running if s.role is Role.THREAD] == [first, first]
    replica.run()


def test_threads_of_a_stitched_family_that_has_lost_all_compute_its_context_once():
    request = Request(64, (4, Fork(((3,), (5,))), 8, Fork(((40,), (40,))), 2))
    replica = Replica(replace(ENGINE, spoken=MULTIVERSE))
    replica.submit(request)
    replica.run(until=40.0)
    threads = [s for s in replica.core.running if s.role is Role.THREAD]
    for thread in threads:
        replica._preempt(thread)
    contexts, fork_len = [thread.tokens for thread in threads], threads[0].fork_len
    replica._relief.relieve()
    assert replica.core.pool.num_free == ENGINE.num_blocks
    replica.run()
    # The second starts on the whole blocks of what the first has computed of their parent.
    assert replica.core.counts.prefilled[Cause.RECOMPUTED] == sum(contexts) - 16 * (fork_len // 16)


def test_an_evicted_family_finds_what_its_first_thread_had_written():
    # The first thread ends early; its KV is the beginning of the joined context, which nobody else takes.
    request = Request(64, (4, Fork(((64,), (100,))), 2))
    replica = Replica(replace(ENGINE, join_ahead_tokens=0))
    replica.submit(request)
    replica.run(until=90.0)
    (second,) = (s for s in replica.core.running if s.role is Role.THREAD)
    replica._preempt(second)
    of_second = second.tokens % 16
    replica._relief.relieve()
    assert replica.core.pool.num_free == ENGINE.num_blocks
    replica.run()
    of_first = 64 + 4 + THREADWEAVER.header + 63  # but for its last token, which has no KV
    joined = of_first + 1 + THREADWEAVER.joined_header + 100 + THREADWEAVER.join
    assert replica.core.counts.prefilled[Cause.RECOMPUTED] == joined - 16 * (of_first // 16) + of_second


def test_a_family_that_had_to_give_way_stands_last_from_then_on():
    replica = Replica(ENGINE)
    for _ in range(2):
        replica.submit(Request(32, (200,)))
    replica.run(until=3.0)
    core = replica.core
    old, young = core.running
    old.rank = next(core.ranks)  # as if it had been preempted and started again
    core.sort_running()
    assert old.rank < young.rank


def test_prefill_for_a_join_takes_nobodys_share_of_the_slots():
    replica = Replica(replace(ENGINE, max_num_seqs=2))
    replica.submit(Request(32, (4, Fork(((30,), (30,))), 2)))
    replica.run(until=6.0)
    core = replica.core
    thread = next(iter(core.threads))
    assert replica._pacing._num_others_waiting() == 0
    core.fill(thread.parent, 0, Role.AHEAD, Cause.AHEAD, Kv(), 16)
    assert replica._pacing._num_others_waiting() == 0


def test_where_a_step_computed_nothing_all_threads_may_run():
    replica = Replica(replace(ENGINE, policy=lambda: Capped(1)))
    replica.submit(Request(32, (4, Fork(((30,), (30,))), 2)))
    replica.run(until=6.0)
    pacing, core = replica._pacing, replica.core
    pacing.choose()
    assert pacing.held_back
    core.is_stalled = True
    pacing.choose()
    assert not pacing.held_back


@pytest.mark.parametrize("spoken", [THREADWEAVER, MULTIVERSE], ids=["reprefilled", "stitched"])
def test_families_of_many_forks_on_a_third_of_their_kv_are_about_as_fast_as_with_the_best_gate(spoken):
    requests = draw(SHAPES["medverse"], 24, seed=1)
    engine = Engine(blocks_for(requests, 0.33), spoken=spoken, cost=Linear(0.032, per_token=0.0016))
    gated = [simulate(requests, replace(engine, gate=lambda n=n: AtMost(n))) for n in (8, 10)]
    best, found = min(gated, key=lambda r: r.latency_s.mean), simulate(requests, engine)
    assert found.seconds < 1.02 * best.seconds
    assert found.latency_s.mean < 1.03 * best.latency_s.mean


# ---- what admission could know, and what was tried ------------------------------------------------


def test_what_a_family_holds_alone_follows_its_text():
    held = held_alone(FAMILY, THREADWEAVER, 16)
    # The prompt, then the block that the answer begins. Beside the prompt each thread has one of its own. When
    # the second has ended its own is given back; behind the join its text takes another.
    assert held == (2, 3, 3, 3, 4, 4, 4, 4, 3, 4, 0)


def test_a_foreseeing_gate_lets_in_what_fits_to_its_end_and_no_more():
    peak = max(held_alone(FAMILY, THREADWEAVER, 16))
    for num_blocks, num_at_once in ((2 * peak, 2), (2 * peak - 1, 1)):
        counts = ran([FAMILY] * 2, _foreseen(num_blocks)).core.counts
        started = [f.admitted_at for f in counts.ended]
        assert started.count(1) == num_at_once
        assert counts.num_preempted == 0


def test_a_foreseeing_gate_lets_one_in_as_soon_as_others_give_back_in_time():
    wide = Request(32, (4, Fork(((5,),) * 4), 16))
    engine = _foreseen(2 * max(held_alone(wide, THREADWEAVER, 16)) - 1)
    starts = []
    for gate in (engine.gate, lambda: AtMost(1)):
        counts = ran([wide] * 2, replace(engine, gate=gate)).core.counts
        assert counts.num_preempted == 0
        starts.append(max(family.admitted_at for family in counts.ended))
    assert 1 < starts[0] < starts[1]


def _foreseen(num_blocks):
    return replace(ENGINE, num_blocks=num_blocks, gate=lambda: Foreseen(THREADWEAVER))


def test_one_that_has_written_much_is_expected_to_go_on_as_those_that_wrote_more():
    outlasting = Outlasting()
    for written in (100, 100, 100, 900, 1100):
        outlasting.learn(Need(written, 4, written // 2))
    begun, long = Need(50, 4, 25), Need(500, 4, 250)
    assert outlasting.future(begun, 16).growth == pytest.approx((3 * 50 + 850 + 1050) / 5 / 16)
    assert outlasting.future(long, 16).growth == pytest.approx((400 + 600) / 2 / 16)


def test_one_that_has_outlasted_all_is_expected_to_go_on_as_the_policy_says():
    outlasting, policy = Outlasting(), Sure(1.0)
    for admission in (outlasting, policy):
        admission.learn(Need(100, 4, 50))
    assert outlasting.future(Need(100, 4, 50), 16) == policy.future(Need(100, 4, 50), 16)


def test_who_wants_to_be_sure_wants_that_part_of_the_growth_free():
    once, twice = (Sure(times).future(Need(blocks=3), 16).growth for times in (1.0, 2.0))
    assert twice == pytest.approx(2 * once)


@pytest.mark.parametrize("name", ["surely", "sure", "1.2", ""])
def test_an_unknown_kind_of_admission_is_refused_with_those_that_there_are(name):
    with pytest.raises(UsageError, match=f"expected family, .*, got '{name}'"):
        gate_of(name, THREADWEAVER)


@pytest.mark.parametrize("name", ["family", "greedy", "foreseen", "outlasting", "sure1.2", "3"])
def test_each_kind_of_admission_ends_all_requests(name):
    requests = draw(SHAPES["tight"], 6, seed=1)
    engine = replace(ENGINE, num_blocks=100, gate=gate_of(name, THREADWEAVER))
    assert len(ran(requests, engine).core.counts.ended) == 6


# ---- for every run -----------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(REQUESTS, SPOKEN, GATES, POLICIES, st.floats(1, 3), st.sampled_from([0, 8, 128]), st.integers(4, 64))
def test_nothing_is_lost(requests, spoken, gate, policy, room, ahead, slots):
    most = max(peak_tokens(r, spoken) // 16 + 2 * num_forks(r.body) * 4 + 24 for r in requests)
    engine = Engine(
        int(most * room),
        spoken=spoken,
        cost=SECONDS,
        gate=gate,
        join_ahead_tokens=ahead,
        max_num_seqs=slots,
        max_batched_tokens=max(slots, 64),
        **({"policy": lambda: policy} if policy else {}),
    )
    replica = ran(requests, engine)
    counts = replica.core.counts
    assert replica.core.pool.num_free == engine.num_blocks
    assert sorted(f.number for f in counts.ended) == list(range(len(requests)))
    for family in counts.ended:
        assert family.done == num_generated(family.request.body)
    assert counts.num_computed == counts.num_decoded + sum(counts.prefilled.values())
    # Each token is the sample of a step that decoded, or of the end of a prefill.
    assert counts.num_decoded < sum(num_generated(r.body) for r in requests)
    assert not any(
        [
            replica.core.running,
            replica.core.waiting,
            replica.core.begun,
            replica.core.threads,
            replica.core.admitted,
        ]
    )
    assert (replica.core.num_decoding, replica.core.context_decoding) == (0, 0)


@settings(max_examples=30, deadline=None)
@given(REQUESTS)
def test_without_pressure_every_gate_and_cap_writes_the_same_in_no_fewer_steps(requests):
    free = ran(requests, replace(ENGINE, num_blocks=20_000)).core.counts
    capped = ran(requests, replace(ENGINE, num_blocks=20_000, policy=lambda: Capped(1))).core.counts
    assert free.num_preempted == capped.num_preempted == 0
    assert free.num_steps <= capped.num_steps
    assert free.num_steps >= max(num_critical(r.body) for r in requests)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_run_depends_on_its_seed_alone(shape):
    def result(seed):
        requests = at_rate(draw(SHAPES[shape], 12, seed), 2.0, seed)
        return simulate(requests, Engine(3000), num_replicas=2)

    assert result(1) == result(1)
    assert result(1) != result(2)


def test_sitting_out_steps_costs_no_tokens():
    cost = StepCost()
    for n in range(1, 60):
        cost.observe(Load(n, n, 0), 0.01 * n)
    engine = replace(
        ENGINE, cost=Linear(0.0, 0.01), policy=lambda: Slack(cost, 0.05), slo_itl=0.05, max_num_seqs=64
    )
    request = Request(32, (4, Fork(tuple((20,) for _ in range(12))), 4))
    both = [request, Request(32, (40,), may_fork=False)]
    paced, eager = ran(both, engine).core.counts, ran(both, replace(ENGINE, cost=engine.cost)).core.counts
    assert paced.num_decoded == eager.num_decoded
    assert paced.num_steps > eager.num_steps
    assert paced.busy_s / paced.num_steps < eager.busy_s / eager.num_steps


def test_a_family_is_not_slowed_down_for_itself():
    cost = StepCost()
    for n in range(1, 60):
        cost.observe(Load(n, n, 0), 0.01 * n)
    engine = replace(ENGINE, cost=Linear(0.0, 0.01), policy=lambda: Slack(cost, 0.05), slo_itl=0.05)
    request = Request(32, (4, Fork(tuple((20,) for _ in range(12))), 4))
    eager = ran([request], replace(ENGINE, cost=engine.cost)).core
    assert ran([request], engine).core.now == eager.now


def test_drafts_make_steps_dearer_and_tokens_come_in_fewer():
    # 10 tokens after the first: with two drafts each step computes 3 tokens, 0.3 s, and brings two of them
    engine = replace(ENGINE, cost=Linear(0.0, per_token=0.1), drafted=2, tokens_a_step=2.0)
    (family,) = ran([Request(10, (11,))], engine).core.counts.ended
    assert family.first_token_at == pytest.approx(1.0)
    assert family.ended_at == pytest.approx(1.0 + 10 * 0.3 / 2)


def test_what_is_prefilled_beside_drafts_is_paid_whole():
    # the first decodes when the second comes: its prompt of 20 takes 2 s, as without drafts
    engine = replace(ENGINE, cost=Linear(0.0, per_token=0.1), drafted=2, tokens_a_step=2.0)
    replica = Replica(engine)
    replica.submit(Request(10, (11,)))
    replica.run(until=1.0)
    replica.submit(Request(20, (1,), arrival=1.0))
    replica.run(until=1.1)
    assert replica.core.now == pytest.approx(1.0 + 2.0 + 0.15)


@pytest.mark.parametrize(("drafted", "tokens"), [(2, 3.5), (2, 0.5), (0, 2.0)])
def test_a_step_brings_no_more_than_was_drafted(drafted, tokens):
    with pytest.raises(ValueError, match=f"tokens_a_step: expected 1 to .*, got {tokens:g}"):
        replace(ENGINE, drafted=drafted, tokens_a_step=tokens)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("run --threads most", "--threads: expected eager, slack, or capped with a number"),
        ("run --threads capped", "--threads: expected eager"),
        ("compare --threads capped0", "--threads: expected eager"),
        ("run --admission 0", "admission: expected family"),
        ("run --num 0", "--num: expected at least 1, got 0"),
        ("run --replicas 0", "--replicas: expected at least 1"),
        ("run --slots 0", "--slots: expected at least 1"),
        ("run --slots 9000", "--slots: expected at most 8192"),
        ("run --sessions -1", "--sessions: expected at least 0"),
        ("run --blocks 9 --num 3", "--blocks, --kv: expected every request to fit into 9 blocks"),
        ("run --kv 0", "--kv: expected more than 0"),
        ("run --rate -1", "--rate: expected at least 0, got -1"),
        ("run --step-ms 0 1", "--step-ms: expected more than 0"),
        ("run --drafted 1 --tokens-a-step 3", r"--tokens-a-step: expected 1 to 1 \+ --drafted \(2\), got 3"),
        ("run --shape pacore --stitched", "--stitched: expected a shape"),
        ("run --json nowhere/r.json", "--json: expected a file in a folder that is there"),
        ("goodput --rates 1 0", "--rates: expected more than 0, got 0"),
        ("goodput --rates 1 --seeds 0", "--seeds: expected at least 1"),
    ],
)
def test_what_can_not_be_simulated_is_refused_with_what_can(argv, said):
    with pytest.raises(UsageError, match=said):
        main(argv.split())


def test_goodput_is_counted_by_load_and_policy(capsys):
    traffic = ["--shape", "tight", "--num", "6", "--rates", "1", "50", "--seeds", "2"]
    engine = ["--blocks", "600", "--slo-itl-ms", "18", "--threads", "eager", "slack"]
    main(["goodput", *traffic, *engine])
    rows = [line.split("|")[1:4] for line in capsys.readouterr().out.splitlines()[2:]]
    cells = [tuple(cell.strip() for cell in row) for row in rows]
    assert [c[:2] for c in cells] == [("1", "eager"), ("1", "slack"), ("50", "eager"), ("50", "slack")]
    in_time = [int(c[2].rstrip("%")) for c in cells]
    assert in_time[0] > in_time[2], "no more is in time where all come at once"


# ---- replicas ----------------------------------------------------------------------------------


def test_round_robin_takes_turns_and_the_least_loaded_gets_the_next():
    replicas = [Replica(ENGINE) for _ in range(3)]
    robin = RoundRobin()
    assert [replicas.index(robin.pick(FAMILY, replicas)) for _ in range(4)] == [0, 1, 2, 0]
    replicas[0].submit(FAMILY)
    assert LeastLoaded().pick(FAMILY, replicas) is replicas[1]


def test_a_session_goes_where_its_prefix_is_unless_that_is_overloaded():
    replicas = [Replica(ENGINE) for _ in range(4)]
    request = replace(FAMILY, session=7, shared=32)
    own = SessionAffinity(2).pick(request, replicas)
    for _ in range(3):
        own.submit(request)
    assert SessionAffinity(3).pick(request, replicas) is own
    assert SessionAffinity(2).pick(request, replicas) is not own


def test_a_session_finds_its_prefix_in_the_replica_that_has_it():
    requests = list(in_sessions(at_rate(draw(SHAPES["tight"], 40, 1), 1.0, 1), 4, 2000, 1))
    affine = simulate(requests, Engine(20_000), num_replicas=4, router=SessionAffinity())
    spread_out = simulate(requests, Engine(20_000), num_replicas=4, router=RoundRobin())
    assert affine.prefilled["prompt"] < spread_out.prefilled["prompt"] < sum(r.prompt for r in requests)


# ---- parts -------------------------------------------------------------------------------------


def test_free_blocks_are_found_until_they_are_reused_the_oldest_first():
    pool = BlockPool(3)
    a, b = pool.take(), pool.take()
    pool.name(a, 1)
    pool.name(b, 2)
    pool.give_back([a, b])
    assert pool.find([2]) == [b]
    pool.take()  # the nameless one
    pool.take()  # of a sequence's blocks the tail
    assert (pool.find([1]), pool.find([2])) == ([a], [])


def test_of_two_blocks_that_hold_the_same_one_is_found_when_the_other_is_reused():
    pool = BlockPool(2)
    a, b = pool.take(), pool.take()
    pool.name(a, 1)
    pool.name(b, 1)
    assert pool.find([1]) == [a]
    pool.give_back([a])
    assert pool.take() == a
    assert pool.find([1]) == [b]


def test_a_shared_block_is_free_when_all_have_given_it_back():
    pool = BlockPool(2)
    block = pool.take()
    pool.share([block])
    pool.give_back([block])
    assert pool.num_free == 1
    pool.give_back([block])
    assert pool.num_free == 2


def test_percentiles_of_values_that_come_several_times():
    assert weighted_spread([(1.0, 98), (5.0, 2)]) == spread([1.0] * 98 + [5.0] * 2)
    assert weighted_spread([(1.0, 98), (5.0, 2)]).p99 == 5.0


def test_goodput_counts_those_that_keep_both_parts_of_the_slo():
    counts = ran([Request(10, (11,)), Request(10, (11,))]).core.counts
    assert measure([counts], Slo(1.0, 1.0)).num_good == 2
    assert measure([counts], Slo(0.5, 1.0)).num_good == 0
    assert measure([counts], Slo(1.0, 0.9)).num_good == 0


def test_families_and_plain_requests_are_measured_apart():
    plain = Request(10, (11,), may_fork=False)
    counts = ran([FAMILY, plain], replace(ENGINE, cost=lambda load: float(load.num_sequences))).core.counts
    result = measure([counts])
    of_family, of_plain = sorted(counts.ended, key=lambda f: f.request is plain)
    assert result.family_latency_s.mean == of_family.ended_at
    assert result.plain_token_s.mean == (of_plain.ended_at - of_plain.first_token_at) / 10
    assert result.plain_token_s.mean > 1.0, "the threads have slowed it down"


def test_a_parked_parent_holds_whole_blocks_only_while_its_threads_run():
    # 40 of prompt and one written: two blocks, and a tail that each of two threads has of its own.
    request = Request(40, (1, Fork(((3,), (3,))), 1))
    assert ran([request]).core.counts.peak_blocks == 2 + 2
    longer = Request(40, (1, Fork(((20,), (20,))), 1))
    # each of 46 + 20 tokens needs five blocks, two of them shared, when the parent's tail is gone
    assert ran([longer], replace(ENGINE, join_ahead_tokens=0)).core.counts.peak_blocks == 2 + 2 * 3


def test_a_fit_of_steps_predicts_others():
    rng = random.Random(1)
    true = Linear(0.02, 0.001, 0.0005, 1e-6)
    loads = [Load(rng.randint(1, 30), rng.randint(30, 900), rng.randint(0, 50_000)) for _ in range(300)]
    predict = fitted((load, true(load)) for load in loads)
    assert predict(Load(8, 100, 4000)) == pytest.approx(true(Load(8, 100, 4000)), rel=0.02)


@pytest.mark.parametrize("body", [(), (Fork(((1,),)),), (1, Fork(((1,),))), (1, 2), (0,)])
def test_a_body_begins_and_ends_with_tokens(body):
    with pytest.raises(ValueError, match="body: expected"):
        Request(1, body)


def test_what_a_body_comes_to():
    body = (10, Fork(((5,), (3, Fork(((4,), (9,))), 1))), 2)
    assert (num_generated(body), num_critical(body), num_forks(body)) == (34, 25, 2)


def test_at_its_widest_a_family_holds_its_prefix_once():
    spoken = Spoken(header=5, joined_header=4, join=1)
    assert peak_tokens(Request(100, (10, Fork(((20,), (30,))), 1)), spoken) == 110 + 25 + 35 + 1 + 1
