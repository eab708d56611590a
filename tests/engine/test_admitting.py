"""What has begun goes before what has not, and the accounts match the pool: the scheduler, no model."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.engine import FinishReason
from vllm.v1.metrics.stats import IterationStats, LoRARequestStates, RequestStateStats
from vllm.v1.request import RequestStatus

from forkjoin_scheduler.dialects.bound import BoundDialect
from forkjoin_scheduler.dialects.files import load
from forkjoin_scheduler.families.family import BranchState
from forkjoin_scheduler.families.thread_end import ThreadEnd
from forkjoin_scheduler.joins.kinds import make_join
from forkjoin_scheduler.machine import cancelling
from forkjoin_scheduler.policy.step_admission import LOOKED_AT, MAX_OVERTAKEN
from forkjoin_scheduler.policy.threads import ranked
from forkjoin_scheduler.settings import KEY
from forkjoin_scheduler.vllm_seam.cache import kv
from forkjoin_scheduler.vllm_seam.starts import queues
from tests.engine.accounts import check_begun_first
from tests.engine.fed import Scripted

pytestmark = pytest.mark.engine


def fork(fed, *lengths):
    return fed.author.fork(list(lengths))


def crowd(fed, num=80, by_priority=False):
    """Families of three threads, more than there are slots and blocks for, the last the most urgent."""
    for i in range(num):
        fed.add(f"r{i}", 2, fork(fed, 24, 20, 16), 24, priority=-i if by_priority else 0)


POLICIES = pytest.mark.parametrize("policy", ["fcfs", "priority"])


@POLICIES
def test_what_has_joined_and_is_evicted_stands_before_all_that_has_not_begun(policy):
    fed = Scripted(num_blocks=100, max_num_seqs=3, policy=policy)
    crowd(fed, by_priority=policy == "priority")
    fed.step_until(lambda: any(e["type"] == "joined" for e in fed.events))
    begun = set(fed.scheduler._gate.admitted)
    fed.scheduler.reset_prefix_cache(reset_running_requests=True)
    check_begun_first(fed.scheduler)
    fed.step()
    assert {i.split("#")[0] for i in fed.step().num_scheduled_tokens} <= begun
    ended = fed.drain(until=len(begun))
    assert set(ended[: len(begun)]) == begun


@POLICIES
def test_families_evicted_again_and_again_are_all_finished(policy):
    fed = Scripted(num_blocks=60, max_num_seqs=3, policy=policy)
    crowd(fed, 12, by_priority=policy == "priority")
    scheduler, num_steps = fed.scheduler, 0
    while scheduler.requests:
        num_steps += 1
        if num_steps % 37 == 0:
            for live in list(scheduler._core.live.values()):
                scheduler._eviction.evict(live)
        if num_steps % 101 == 0:
            scheduler.reset_prefix_cache(reset_running_requests=True)
        fed.step()
        assert num_steps < 5000, fed.state()
    assert all(outputs[-1].finished for outputs in fed.outputs.values())


def is_parked(fed, name):
    live = fed.scheduler._core.live.get(name)
    return live is not None and live.family.root.state is BranchState.PARKED


def holds_blocks(fed, name):
    return kv.has_blocks(fed.scheduler.kv_cache_manager, fed.scheduler.requests[name])


@pytest.mark.parametrize(("policy", "gives_way"), [("priority", "old"), ("fcfs", "young")])
def test_the_least_urgent_family_gives_way_first_then_the_youngest(policy, gives_way):
    fed = Scripted(policy=policy, admission="greedy")
    fed.add("old", 2, fork(fed, 90, 90), 4, priority=7)
    fed.add("young", 2, fork(fed, 90, 90), 4, priority=3)
    fed.step_until(lambda: is_parked(fed, "old") and is_parked(fed, "young"))
    fed.scheduler._eviction.relieve()
    assert [n for n in ("old", "young") if not holds_blocks(fed, n)] == [gives_way]
    fed.drain()


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_threads_give_way_in_the_order_of_their_families(policy):
    fed = Scripted(num_blocks=30, policy=policy, admission="greedy")
    urgent, other = ("young", "old") if policy == "priority" else ("old", "young")
    fed.add("old", 2, fork(fed, 90, 90), 4, priority=7)
    fed.add("young", 2, fork(fed, 90, 90), 4, priority=3)
    assert fed.drain() == [urgent, other]


def test_no_more_waiting_requests_are_looked_at_than_the_door_needs():
    for policy in ("fcfs", "priority"):
        fed = Scripted(num_blocks=100, max_num_seqs=3, policy=policy)
        crowd(fed, 300)
        looked_at = []
        asked = fed.scheduler._handle_blocked_waiting_request
        fed.scheduler._handle_blocked_waiting_request = lambda r: looked_at.append(r) or asked(r)  # noqa: B023
        for _ in range(20):
            looked_at.clear()
            fed.step()
            assert len(looked_at) <= LOOKED_AT + 10


# ---- blocks that were lost -------------------------------------------------------------------


class NewOnly:
    """Admits all that is new, and nothing that has lost blocks."""

    def __init__(self):
        self.again = []

    def admits(self, new, running, room):
        if new.generated:
            self.again.append((new, running, room))
        return not new.generated

    def learn(self, need):
        pass


@pytest.mark.parametrize("kind", ["reprefill", "stitch"])
def test_a_family_that_has_lost_blocks_asks_again_before_it_takes_them_again(kind):
    published = load("threadweaver")
    join = make_join(**published.join.model_dump() | {"kind": kind})
    fed = Scripted(dialect=published.model_copy(update={"join": join}))
    fed.scheduler._gate._own = own = NewOnly()
    for name in ("old", "young"):
        fed.add(name, 2, fork(fed, 90, 90), 4)
    fed.step_until(lambda: is_parked(fed, "old") and is_parked(fed, "young"))
    evict(fed, "young")
    fed.scheduler._eviction.restore_next()  # a stitched one, as if another had ended
    while "old" in fed.scheduler.requests:
        assert not [i for i in fed.step().num_scheduled_tokens if i.startswith("young")]
    assert fed.drain() == ["young"]
    new, running, room = own.again[0]
    assert new.lost == 0
    assert new.blocks > 64 // 16
    assert [need.blocks > 0 for need in running] == [True]
    assert room.num_free > 900
    assert not fed.scheduler._gate.lost_blocks


def preempt(fed, name):
    """As vLLM does where blocks run out."""
    request = fed.scheduler.requests[name]
    fed.scheduler.running.remove(request)
    fed.scheduler._preempt_request(request, time.monotonic())


def pressed(young, *, num_old=90, **options):
    """A scheduler in which a family runs, and another whose body is ``young``: nothing lost gets room again."""
    fed = Scripted(**options)
    fed.scheduler._gate._own = NewOnly()
    fed.add("old", 2, fork(fed, num_old, num_old), 4)
    fed.add("young", 2, young(fed), 4)
    fed.step_until(lambda: is_parked(fed, "old") and is_parked(fed, "young"))
    fed.step()
    return fed


def test_a_thread_that_has_not_started_needs_no_room_for_what_its_sibling_has_lost():
    fed = pressed(lambda fed: fork(fed, 60, 60, 60), max_num_seqs=4)
    waiting = [i for i in fed.scheduler._core.threads if fed.scheduler.requests[i].num_computed_tokens == 0]
    assert waiting == ["young#2"]
    preempt(fed, "young#0")
    assert set(fed.step().num_scheduled_tokens) == {"old#0", "old#1", "young#1", "young#2"}
    assert fed.scheduler._gate.lost_blocks == {"young"}
    fed.drain()


def test_threads_within_a_thread_start_in_the_next_step_though_a_sibling_has_lost_its_blocks():
    dialect = load("threadweaver").model_copy(update={"max_depth": 2})

    def nested(fed):
        inner = fed.author.fork([30, 30], within="1.")
        return fed.author.fork_into(
            [(fed.author.text(20), inner, fed.author.text(4)), (fed.author.text(90),)]
        )

    fed = pressed(nested, dialect=dialect)
    preempt(fed, "young#1")
    fed.step_until(lambda: "young#2" in fed.scheduler.requests)
    assert fed.scheduler._gate.lost_blocks == {"young"}
    assert {"young#2", "young#3"} <= fed.step().num_scheduled_tokens.keys()
    fed.drain()


def test_a_family_whose_lost_thread_was_cancelled_has_lost_nothing():
    fed = pressed(lambda fed: fork(fed, 60, 60))
    preempt(fed, "young#1")
    fed.step()
    assert fed.scheduler._gate.lost_blocks == {"young"}
    cancelling.ask(fed.scheduler._core.live["young"], 1)
    fed.step()
    assert "young#1" not in fed.scheduler.requests
    assert "young#0" in fed.step().num_scheduled_tokens
    assert not fed.scheduler._gate.lost_blocks
    fed.drain()


def test_a_family_whose_join_takes_other_blocks_in_place_of_those_lost_has_lost_nothing():
    fed = pressed(lambda fed: fork(fed, 20, 20))
    scheduler, parent = fed.scheduler, fed.scheduler.requests["young"]
    kv.free(scheduler.kv_cache_manager, parent)
    queues.repark(scheduler, parent, 0)
    scheduler._gate.lost(parent)
    fed.step_until(lambda: any(e["type"] == "joined" for e in fed.events))
    assert parent.num_computed_tokens > 0
    assert fed.scheduler._gate.lost_blocks == {"young"}
    fed.step()
    assert not fed.scheduler._gate.lost_blocks
    fed.drain()


def test_plain_requests_pass_a_family_that_has_lost_blocks_but_not_for_ever():
    fed = pressed(lambda fed: fork(fed, 60, 60), num_old=120)
    preempt(fed, "young#0")
    preempt(fed, "young#1")
    names = [f"plain {i}" for i in range(MAX_OVERTAKEN + 8)]
    for name in names:
        fed.add(name, 1, max_tokens=1, extra_args={KEY: {"enabled": False}})
    started = []
    while "old" in fed.scheduler.requests:
        started += [i for i in fed.step().num_scheduled_tokens if i in names]
    assert started == names[:MAX_OVERTAKEN]
    assert set(fed.drain()) == {"young", *names[MAX_OVERTAKEN:]}


class FurthestBehind:
    """One thread of each family. Writes down which it was asked of."""

    def __init__(self):
        self.asked = []

    def choose(self, facts):
        self.asked.append({thread.key for thread in facts.threads})
        return {thread.key for rank, thread in ranked(facts.threads) if rank == 0}


def test_a_thread_that_is_to_be_admitted_again_is_not_chosen_in_the_place_of_one_that_can_run():
    fed = pressed(lambda fed: fork(fed, 60, 60))
    fed.scheduler._pacer.policy = policy = FurthestBehind()
    preempt(fed, "young#0")
    for _ in range(20):
        assert "young#1" in fed.step().num_scheduled_tokens
    assert not any("young#0" in keys for keys in policy.asked)
    fed.drain()


@pytest.mark.parametrize("of", ["server", "request"])
def test_no_more_threads_run_than_the_cap_says_where_one_is_admitted_again(of):
    fed = Scripted(**{"max_threads_running": 1} if of == "server" else {})
    options = {"max_threads_running": 1} if of == "request" else {}
    fed.add("a", 2, fork(fed, 20, 20, 20), 4, extra_args={KEY: options})
    fed.step_until(lambda: is_parked(fed, "a"))
    fed.step()
    preempt(fed, "a#0")
    assert fed.scheduler._gate.lost_blocks == {"a"}
    while "a" in fed.scheduler.requests:
        assert (
            len([i for i in fed.step().num_scheduled_tokens if i.startswith("a#") and "fill" not in i]) <= 1
        )


def evict(fed, name):
    """Take the blocks of a family that may run."""
    scheduler = fed.scheduler
    for request in [r for r in scheduler.running if r.request_id.startswith(name)]:
        scheduler.running.remove(request)
        scheduler.preempt(request)
    scheduler._eviction.evict(scheduler._core.live[name])


def test_a_family_that_only_waits_gives_way_before_an_older_one_loses_blocks(monkeypatch):
    lost, sizes = {}, range(num_blocks_of_one() + 1, num_blocks_of_one() + 7)
    lost["gives way"] = ["old" in families_that_lose_blocks(size) for size in sizes]
    monkeypatch.setattr("forkjoin_scheduler.vllm_seam.cache.eviction.Eviction._make_way", lambda self: None)
    lost["does not"] = ["old" in families_that_lose_blocks(size) for size in sizes]
    assert sum(lost["gives way"]) < sum(lost["does not"]), lost


@pytest.mark.parametrize("spared_by", ["nothing", "leases", "blocks to come"])
def test_no_family_gives_way_where_others_blocks_do(monkeypatch, spared_by):
    fed = pressed(lambda fed: fork(fed, 60, 60))
    scheduler, eviction = fed.scheduler, fed.scheduler._eviction
    preempt(fed, "young#0")
    preempt(fed, "young#1")
    fed.step_until(lambda: sum(map(eviction._num_lacking, scheduler.running)) > 0)
    pool = scheduler.kv_cache_manager.block_pool
    taken = pool.get_new_blocks(pool.get_num_free_blocks())
    if spared_by == "leases":
        scheduler._core.leases.holders.update(block.block_id for block in taken)
    if spared_by == "blocks to come":  # when the step in flight has ended
        scheduler.sched_step_seq += 1
        scheduler.deferred_frees.append((scheduler.sched_step_seq, []))
    eviction.spare_the_oldest()
    assert holds_blocks(fed, "young") == (spared_by != "nothing")


def num_blocks_of_one():
    """The blocks of a pool in which a family runs alone, and of which it uses all."""
    fed, free = Scripted(join_ahead_tokens=0), []
    fed.add("old", 2, fork(fed, 120, 120), 8)
    while fed.scheduler.requests:
        fed.step()
        free.append(kv.num_free_blocks(fed.scheduler.kv_cache_manager))
    return 1000 - min(free)


def families_that_lose_blocks(num_blocks):
    """Those of two that are preempted."""
    fed = Scripted(num_blocks=num_blocks, join_ahead_tokens=0)  # threads alone need blocks while they run
    fed.scheduler._gate._own = NewOnly()
    for name in ("old", "young"):
        fed.add(name, 2, fork(fed, 120, 120), 8)
    lost, preempt = set(), fed.scheduler._preempt_request

    def recorded(request, *args, **kwargs):  # the ids in a step's output are also those of parked parents
        lost.add(request.request_id.partition("#")[0])
        preempt(request, *args, **kwargs)

    fed.scheduler._preempt_request = recorded
    fed.drain()
    return lost


# ---- a policy of one's own -----------------------------------------------------------------


class Refuses:
    """Admits nobody, and remembers what it was told."""

    def __init__(self):
        self.asked, self.learnt = [], []

    def admits(self, new, running, room):
        self.asked.append((new, running, room))
        return False

    def learn(self, need):
        self.learnt.append(need)


def test_a_policy_that_admits_nobody_has_requests_run_one_after_the_other():
    fed = Scripted()
    fed.scheduler._gate._own = own = Refuses()
    for name in "ab":
        fed.add(name, 2, fork(fed, 20, 20), 4)
    together = set()
    while fed.scheduler.requests:
        together.add(frozenset(i.split("#")[0] for i in fed.step().num_scheduled_tokens))
    assert {len(names) for names in together if names} == {1}
    assert [need.width for need in own.learnt] == [2, 2]
    new, (running, *others), room = own.asked[-1]
    assert (new.generated, others, room.tokens_per_block) == (0, [], 16)
    assert running.generated > 0
    assert running.blocks > 0


class NeitherTrueNorFalse:
    def __bool__(self):
        raise RuntimeError("a fault for a test")


@pytest.mark.parametrize("method", ["admits", "learn", "its answer"])
def test_a_policy_that_raises_is_asked_no_more_and_the_built_in_one_decides(method):
    fed = Scripted()
    fed.scheduler._gate._own = own = Refuses()

    def fail(*args):
        raise RuntimeError("a fault for a test")

    if method == "its answer":
        own.admits = lambda *args: NeitherTrueNorFalse()
    else:
        setattr(own, method, fail)
    for name in "ab":
        fed.add(name, 2, fork(fed, 20, 20), 4)
    assert set(fed.drain()) == {"a", "b"}
    assert fed.scheduler._gate._own is None
    assert [e["where"] for e in fed.events if e["type"] == "internal_error"] == ["admit"]


# ---- pauses --------------------------------------------------------------------------------


@pytest.mark.parametrize("parent", ["parked", "resumed"])
def test_a_pause_that_waits_is_over_when_every_family_that_has_begun_is_done(parent):
    fed = Scripted(max_num_seqs=3)
    fed.add("r0", 2, fork(fed, 30, 40), 12)
    scheduler = fed.scheduler
    fed.step_until(lambda: is_parked(fed, "r0"))
    if parent == "resumed":
        fed.step_until(lambda: any(e["type"] == "joined" for e in fed.events))
    scheduler._eviction.evict(scheduler._core.live["r0"])  # it has no token with KV now, and waits
    fed.add("r1", 4)
    scheduler.set_pause_state(PauseState.PAUSED_NEW)
    for _ in range(200):
        if not scheduler.has_unfinished_requests():
            break
        assert scheduler._core.live
        fed.step()
    assert fed.outputs["r0"][-1].finish_reason is FinishReason.STOP
    assert not fed.outputs["r1"]
    scheduler.set_pause_state(PauseState.UNPAUSED)
    assert fed.drain() == ["r1"]


def test_a_pause_of_all_runs_nothing_and_takes_nobodys_blocks():
    fed = Scripted()
    fed.add("r0", 2, fork(fed, 30, 40), 12)
    fed.step_until(lambda: is_parked(fed, "r0"))
    fed.scheduler.set_pause_state(PauseState.PAUSED_ALL)
    assert not fed.scheduler.has_unfinished_requests()
    for _ in range(3):
        assert not fed.step().num_scheduled_tokens
    assert holds_blocks(fed, "r0")
    fed.scheduler.set_pause_state(PauseState.UNPAUSED)
    assert fed.drain() == ["r0"]


def test_a_family_of_which_nothing_is_left_but_what_is_suspended_is_unfinished():
    published = load("threadweaver")
    stitched = make_join(**published.join.model_dump() | {"kind": "stitch"})
    fed = Scripted(dialect=published.model_copy(update={"join": stitched}))
    fed.add("r0", 40)
    fed.step()
    live, _ = fed.scheduler._core.branch_of(fed.scheduler.requests["r0"])
    fed.scheduler._eviction.evict(live)
    assert not fed.scheduler.running
    assert fed.scheduler.has_unfinished_requests()
    assert fed.drain() == ["r0"]


# ---- prefills held back --------------------------------------------------------------------


def spaced(interval):
    """A scheduler that lets prompts in in one of ``interval`` steps."""
    fed = Scripted(prefill_schedule_interval=interval)
    if interval > 1 and not hasattr(fed.scheduler, "local_prefill_interval"):
        pytest.skip("before vLLM 0.33 engines count these steps, with data parallelism only")
    return fed


@pytest.mark.parametrize("interval", [pytest.param(1, id="in engine"), pytest.param(1000, id="in scheduler")])
def test_threads_start_in_the_next_step_though_prompts_are_held_back(interval):
    """As ``--prefill-schedule-interval`` does, in all steps but some: by what counts them."""
    fed, is_told = spaced(interval), interval == 1
    fed.add("other", 200)
    fed.add("r0", 2, fork(fed, 20, 20), 4)
    fed.step()
    fed.step_until(lambda: is_parked(fed, "r0"))
    fed.add("new", 4)
    scheduled = fed.step(throttle_prefills=is_told).num_scheduled_tokens
    assert {"r0#0", "r0#1", "other"} == scheduled.keys()
    while not any(e["type"] == "joined" for e in fed.events):
        fed.step(throttle_prefills=is_told)
    assert "r0" in fed.step(throttle_prefills=is_told).num_scheduled_tokens
    assert not fed.outputs["new"]
    fed.drain()


def test_prefills_of_threads_and_joins_do_not_put_prompts_off():
    fed = spaced(100)
    fed.add("other", 300)
    fed.add("r0", 2, fork(fed, 20, 20), 4)
    fed.step()
    fed.add("new", 4)
    for _ in range(99):
        assert "new" not in fed.step().num_scheduled_tokens
    assert any(e["type"] == "joined" for e in fed.events)
    assert "new" in fed.step().num_scheduled_tokens
    fed.drain()


# ---- accounts ------------------------------------------------------------------------------


def account(fed, name):
    return fed.scheduler._gate.come_to(fed.scheduler._gate.admitted[name])


def test_an_evicted_family_holds_nothing_and_will_take_again_what_it_lost():
    fed = Scripted()
    fed.add("r0", 2, fork(fed, 60, 60), 4)
    fed.step_until(lambda: is_parked(fed, "r0"))
    for _ in range(40):
        fed.step()
    before = account(fed, "r0")
    assert before.blocks > 10
    assert before.lost == 0
    fed.scheduler.reset_prefix_cache(reset_running_requests=True)
    after = account(fed, "r0")
    assert after.blocks == 0
    assert after.lost == pytest.approx(before.blocks, abs=3)  # some are partly filled
    fed.drain()


def test_a_prefix_that_two_families_share_is_freed_with_the_second_of_them():
    fed = Scripted()
    prompt = fed.author.text(128)
    fed.add("r0", 30, prompt=prompt)
    fed.step()
    alone = account(fed, "r0").blocks
    fed.add("r1", 60, prompt=prompt)
    fed.step()
    shared = alone - account(fed, "r0").blocks
    assert shared >= 5
    assert account(fed, "r1").blocks <= 3
    fed.step_until(lambda: "r0" not in fed.scheduler.requests)
    assert account(fed, "r1").blocks > shared
    fed.drain()


@pytest.mark.parametrize(("stop", "teaches"), [("the end", True), ("not there", False)])
def test_a_request_that_ends_with_a_stop_string_teaches_and_one_whose_client_goes_does_not(stop, teaches):
    """The front end finds the string, and aborts."""
    fed = Scripted()
    fed.add("r0", "one two the end of it", 20, stop=[stop])
    for _ in range(20):
        fed.step()
    fed.scheduler.finish_requests("r0", RequestStatus.FINISHED_ABORTED)
    assert fed.scheduler._gate.admission.tokens.num_seen == teaches
    assert not fed.scheduler._gate.admitted


@pytest.mark.parametrize(
    ("options", "asked", "max_tokens"),
    [
        ({"best_of": 5, "vote": "a"}, 5, 500),
        ({"branches": [{"text": "a"}, {"text": "b"}]}, 2, 100),
        ({"best_of": 5, "vote": "a", "max_total_tokens": 80}, 5, 80),
        ({}, 0, 100),
    ],
    ids=lambda v: next(iter(v), "none") if isinstance(v, dict) else "",
)
def test_what_a_request_asks_for_is_foreseen_at_its_admission(options, asked, max_tokens):
    fed = Scripted()
    fed.add("r0", 9, max_tokens=100, extra_args={KEY: options})
    need = fed.scheduler._gate.new_need(fed.scheduler.requests["r0"])
    assert (need.asked, need.max_tokens, need.blocks) == (asked, max_tokens, 4)


def test_a_spliced_family_stays_in_the_accounts_until_its_last_thread_has_ended():
    fed = Scripted()
    fed.add("r0", 2, fork(fed, 60, 60), 4)
    fed.step_until(lambda: is_parked(fed, "r0"))
    live = fed.scheduler._core.live["r0"]
    spliced = make_join(**live.dialect.join.model_dump() | {"kind": "splice"})
    dialect = live.dialect.model_copy(update={"join": spliced})
    live.terms = replace(live.terms, bound_dialect=BoundDialect.bind(dialect, fed.scheduler._core.tokenizer))
    assert live.buffers_parent_output
    live.request.status = RequestStatus.FINISHED_STOPPED
    fed.scheduler._gate.ended(live.request)
    assert "r0" in fed.scheduler._gate.admitted
    live.family.end(live.family.root, ThreadEnd.STOP)
    fed.scheduler._gate.ended(live.request)
    assert "r0" not in fed.scheduler._gate.admitted


# ---- what vLLM notes of a request ----------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{"best_of": 2, "vote": "a"}, {"branches": [{"text": "a"}]}, {}],
    ids=["best_of", "branches", "plain"],
)
def test_the_first_output_of_every_request_tells_of_its_prefill(options):
    fed = Scripted()
    fed.scheduler.log_stats = True
    fed.scheduler.make_stats = lambda *_, **__: None
    request = fed.add("r0", 9, max_tokens=30, extra_args={KEY: options})
    num_prompt_tokens = request.num_prompt_tokens
    fed.drain()
    first, *others = fed.outputs["r0"]
    assert first.prefill_stats.num_prompt_tokens == num_prompt_tokens
    assert first.prefill_stats.num_cache_creation_tokens >= num_prompt_tokens // 16 * 16
    assert all(o.prefill_stats is None for o in others)
    stats, of_request = IterationStats(), RequestStateStats(arrival_time=time.time())
    stats.update_from_output(first, time.monotonic(), True, of_request, LoRARequestStates(), None)
    assert stats.prompt_token_stats.total == num_prompt_tokens
    assert 0 < of_request.queued_ts <= of_request.scheduled_ts <= of_request.first_token_ts


def test_what_a_family_starts_hashes_no_block_that_it_knows_already():
    fed = Scripted(join_ahead_tokens=16)
    hashed = []
    hasher = fed._hasher

    def counting(request):
        found = hasher(request)
        hashed.append((request.request_id, len(found)))
        return found

    fed._hasher = counting
    fed.add("r0", 2, fork(fed, 20, 40, 30, 120), 4, prompt=fed.author.text(2000))
    while fed.scheduler.requests:
        fed.step()
        check_hashes_of(fed, hasher)
    of_others = [(i, n) for i, n in hashed if "#" in i and n]
    assert any("#fill" in i for i, _ in hashed)
    assert max(n for _, n in of_others) <= 3


def check_hashes_of(fed, hasher):
    """Each hash is that of the request's own tokens, computed from the first."""
    for request in fed.scheduler.requests.values():
        known, request.block_hashes = request.block_hashes, []
        assert hasher(request) == known
        request.block_hashes = known
