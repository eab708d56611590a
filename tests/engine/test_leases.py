"""Answers that are kept for requests to come, on the real scheduler without a model."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from vllm.v1.request import RequestStatus

from forkjoin_bench.vllm_seam.offloading import offloading
from forkjoin_scheduler.dialects.files import load
from forkjoin_scheduler.joins.kinds import make_join
from forkjoin_scheduler.settings import KEY
from forkjoin_scheduler.vllm_seam.cache import kv
from tests.engine.fed import BLOCK_SIZE, Scripted

pytestmark = pytest.mark.engine


class Clock:
    """Time that a test lets pass."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Keeping(Scripted):
    """A scheduler whose requests may ask for leases. After each step the pool agrees with the accounts."""

    def __init__(self, **options):
        super().__init__(**options)
        self.clock = self.leasing._clock = Clock()

    @property
    def leasing(self):
        return self.scheduler._leasing

    @property
    def leases(self):
        return self.scheduler._core.leases

    def ask(self, name, *body, forkjoin, prompt=None, tenant=None, **params):
        extra = {KEY: forkjoin} | ({"forkjoin_tenant": tenant} if tenant else {})
        return self.add(name, *body, prompt=prompt, extra_args=extra, **params)

    def answer(self, name, *body, **more):
        """Let a request be answered; returns its prompt and answer as tokens."""
        request = self.ask(name, *body, **more)
        self.drain()
        return list(request.all_token_ids)

    def goes_on(self, name, context, forkjoin):
        """Send a request that has ``context`` before a question of its own."""
        text = self.scheduler._core.tokenizer.decode(context) + self.author.text(20)
        return self.ask(name, 8, prompt=text, forkjoin=forkjoin)

    def step(self, **how):
        output = super().step(**how)
        self.check()
        return output

    def check(self):
        assert self.leases.num_blocks <= self.leases.max_blocks
        assert kv.miscounted(self.scheduler.kv_cache_manager, self.scheduler._fence._owned()) is None

    def told(self, kind):
        return [{k: v for k, v in e.items() if k != "type"} for e in self.events if e["type"] == kind]

    def is_empty(self):
        pool = self.scheduler.kv_cache_manager.block_pool
        return pool.get_num_free_blocks() == pool.num_gpu_blocks - 1


def _fill(keeping, num):
    """Requests that write over all blocks that nobody holds."""
    for n in range(num):
        keeping.answer(f"other {n}", 40, prompt=keeping.author.text(600), forkjoin={})


def _prefilled(keeping, request):
    """Tokens of the prompt of ``request`` that are computed in its first step."""
    output = keeping.step()
    return output.num_scheduled_tokens[request.request_id]


def test_what_goes_on_from_a_kept_answer_prefills_only_what_is_new_however_much_ran_between():
    keeping = Keeping(num_blocks=100)
    context = keeping.answer("a", 100, prompt=keeping.author.text(200), forkjoin={"keep": 60})
    (kept,) = keeping.told("kept")
    assert (kept["seconds"], kept["refusal"]) == (60, None)
    assert 0 <= len(context) - kept["num_tokens"] <= BLOCK_SIZE
    _fill(keeping, 4)
    request = keeping.goes_on("b", context, {"continues": "a"})
    assert _prefilled(keeping, request) == request.num_prompt_tokens - kept["num_tokens"]
    keeping.drain()
    assert keeping.told("continued") == [{"state": "kept"}]


def test_without_a_lease_the_same_is_prefilled_again():
    keeping = Keeping(num_blocks=100)
    context = keeping.answer("a", 100, prompt=keeping.author.text(200), forkjoin={})
    _fill(keeping, 4)
    request = keeping.goes_on("b", context, {"continues": "a"})
    assert _prefilled(keeping, request) == request.num_prompt_tokens
    keeping.drain()
    assert not keeping.told("kept") + keeping.told("continued") + keeping.told("leased")


def test_an_answer_that_forked_is_kept_and_several_go_on_from_it_at_once():
    keeping = Keeping(num_blocks=400)
    context = keeping.answer("a", 20, keeping.author.fork([30, 60]), 20, forkjoin={"keep": 60})
    (kept,) = keeping.told("kept")
    assert len(context) - kept["num_tokens"] <= BLOCK_SIZE
    _fill(keeping, 12)
    agents = [keeping.goes_on(f"agent {n}", context, {"continues": "a"}) for n in range(4)]
    output = keeping.step()
    assert [output.num_scheduled_tokens[a.request_id] for a in agents] == [
        a.num_prompt_tokens - kept["num_tokens"] for a in agents
    ]
    keeping.drain()
    assert keeping.told("continued") == [{"state": "kept"}] * 4
    assert keeping.leasing.now()["answers"][0]["num_continued"] == 4


def test_a_lease_ends_when_its_time_is_over_and_what_goes_on_hears_of_it():
    keeping = Keeping()
    context = keeping.answer("a", 60, forkjoin={"keep": 60})
    assert keeping.leases.num_blocks > 0
    keeping.clock.now += 60
    assert keeping.scheduler.has_requests(), "it is told though nothing runs"
    keeping.step()
    assert not keeping.scheduler.has_requests()
    assert keeping.is_empty()
    keeping.goes_on("b", context, {"continues": "a"})
    keeping.drain()
    assert keeping.told("continued") == [{"state": "expired"}]
    assert keeping.told("leased")[-1] == {"num_leases": 0, "num_blocks": 0, "ends": ["expired"]}


def test_a_lease_that_its_tenant_releases_ends_and_nobody_elses_can_be_released():
    keeping = Keeping()
    alice, bob = ({"id": name, "weight": 1.0} for name in ("alice", "bob"))
    context = keeping.answer("a", 60, forkjoin={"keep": 60}, tenant=alice)
    assert keeping.scheduler.release_kept("a", "bob") == "unknown"
    keeping.ask("b", 8, forkjoin={"continues": "a"}, tenant=bob)
    keeping.drain()
    assert not keeping.told("continued"), "another's answer is one that there is not"
    assert keeping.scheduler.release_kept("a", "alice") == "released"
    assert keeping.scheduler.release_kept("a", "alice") == "unknown"
    assert keeping.is_empty()
    keeping.ask("c", 8, prompt="x" * len(context), forkjoin={"continues": "a"}, tenant=alice)
    keeping.drain()
    assert keeping.told("continued") == [{"state": "released"}]


def test_pressure_takes_leases_before_anything_that_runs_the_one_first_that_was_used_longest_ago():
    keeping = Keeping(num_blocks=100, max_kept_share=0.6)
    contexts = {}
    for name in ("old", "used", "new"):
        contexts[name] = keeping.answer(name, 60, prompt=keeping.author.text(150), forkjoin={"keep": 60})
        keeping.clock.now += 1
    keeping.goes_on("agent", contexts["old"], {"continues": "old"})
    keeping.drain()
    request = keeping.ask("big", 40, prompt=keeping.author.text(1100), forkjoin={})
    keeping.drain()
    assert request.num_preemptions == 0
    assert [lease.name for lease in keeping.leases] in (["old"], ["old", "new"])
    for name in ("used", "old"):
        keeping.goes_on(f"after {name}", contexts[name], {"continues": name})
        keeping.drain()
    assert keeping.told("continued") == [{"state": "kept"}, {"state": "pressure"}, {"state": "kept"}]


def test_a_request_that_would_not_fit_beside_leases_starts_at_once():
    keeping = Keeping(num_blocks=60, max_kept_share=0.6)
    keeping.answer("a", 60, prompt=keeping.author.text(400), forkjoin={"keep": 60})
    assert keeping.leases.num_blocks > 20
    request = keeping.ask("big", 8, prompt=keeping.author.text(700), forkjoin={})
    keeping.step()
    assert request.status == RequestStatus.RUNNING
    keeping.drain()
    assert keeping.is_empty()


def test_a_request_that_would_not_fit_even_then_ends_no_lease():
    keeping = Keeping(num_blocks=101, max_kept_share=0.25)
    keeping.answer("a", 8, prompt=keeping.author.text(300), forkjoin={"keep": 60})
    runs = keeping.ask("runs", 100, prompt=keeping.author.text(600), forkjoin={})
    keeping.step()
    big = keeping.ask("big", 8, prompt=keeping.author.text(1300), forkjoin={})
    for _ in range(10):
        keeping.step()
    assert (runs.status, big.status) == (RequestStatus.RUNNING, RequestStatus.WAITING)
    assert [lease.name for lease in keeping.leases] == ["a"]
    keeping.drain()
    assert big.is_finished()


def test_a_family_that_fails_after_its_answer_was_kept_leaves_the_lease_as_it_is():
    def fail():
        raise ValueError

    keeping = Keeping()
    context = keeping.answer("a", 60, forkjoin={"keep": 60})
    keeping.scheduler._fence.fenced("advance", "a", fail)
    keeping.check()
    assert list(keeping.leasing._held) == list(keeping.leases)
    request = keeping.goes_on("b", context, {"continues": "a"})
    assert _prefilled(keeping, request) < BLOCK_SIZE + 40
    keeping.drain()
    keeping.clock.now += 60
    keeping.step()
    assert not keeping.scheduler.has_requests()
    assert keeping.is_empty()


def test_of_a_stitched_answer_only_what_can_be_found_again_is_kept():
    published = load("threadweaver")
    stitched = make_join(**published.join.model_dump() | {"kind": "stitch"})
    keeping = Keeping(dialect=published.model_copy(update={"join": stitched}))
    prompt = keeping.author.text(100)
    context = keeping.answer(
        "a", 20, keeping.author.fork([30, 300]), 20, prompt=prompt, forkjoin={"keep": 60}
    )
    (kept,) = keeping.told("kept")
    assert 100 <= kept["num_tokens"] < 200
    assert keeping.leases.num_blocks * BLOCK_SIZE == kept["num_tokens"]
    request = keeping.goes_on("b", context, {"continues": "a"})
    assert _prefilled(keeping, request) == request.num_prompt_tokens - kept["num_tokens"]
    keeping.drain()


def test_beside_a_connector_one_lease_gives_way_at_once_though_a_step_is_in_flight():
    keeping = Keeping(num_blocks=100, max_kept_share=0.6, is_async=True, connects=offloading(1))
    for name in ("old", "new"):
        keeping.answer(name, 60, prompt=keeping.author.text(250), forkjoin={"keep": 60})
        keeping.clock.now += 1
    keeping.ask("runs", 200, forkjoin={})
    for _ in range(4):
        keeping.step()
    in_flight = keeping.scheduler.schedule()
    keeping.ask("big", 40, prompt=keeping.author.text(960), forkjoin={})
    output = keeping.scheduler.schedule()
    assert "big" in output.num_scheduled_tokens
    assert [lease.name for lease in keeping.leases] == ["new"]
    for scheduled in (in_flight, output):
        keeping.scheduler.update_from_output(scheduled, keeping._sample(scheduled))
    keeping.drain()


@pytest.mark.parametrize("resets_running", [False, True])
def test_resetting_the_prefix_cache_ends_all_leases(resets_running):
    keeping = Keeping()
    context = keeping.answer("a", 60, forkjoin={"keep": 60})
    assert keeping.scheduler.reset_prefix_cache(reset_running_requests=resets_running)
    assert keeping.is_empty()
    keeping.goes_on("b", context, {"continues": "a"})
    keeping.drain()
    assert keeping.told("continued") == [{"state": "reset"}]


def test_more_than_the_servers_share_or_the_keys_budget_is_refused_and_says_so():
    keeping = Keeping(num_blocks=101, max_kept_share=0.25)
    poor = {"id": "poor", "weight": 1.0, "max_kept_tokens": 160}
    for name, tenant, num in (("a", poor, 100), ("b", poor, 100), ("c", None, 200), ("d", None, 200)):
        keeping.answer(name, 8, prompt=keeping.author.text(num), forkjoin={"keep": 60}, tenant=tenant)
    assert [kept["refusal"] for kept in keeping.told("kept")] == [None, "budget", None, "share"]
    assert keeping.leases.num_blocks <= 25


def test_an_answer_of_less_than_a_block_is_not_kept():
    keeping = Keeping()
    keeping.answer("a", 2, prompt="x", forkjoin={"keep": 60})
    assert [kept["refusal"] for kept in keeping.told("kept")] == ["not_cached"]


def test_what_its_client_aborts_is_not_kept():
    keeping = Keeping()
    keeping.ask("a", 400, forkjoin={"keep": 60})
    for _ in range(40):
        keeping.step()
    keeping.cancel(["a"])
    keeping.step()
    assert keeping.is_empty()
    assert not keeping.told("kept")


@pytest.mark.parametrize("seed", range(3))
def test_whatever_happens_leases_stay_within_their_share_and_every_block_comes_back(seed):
    chance, keeping = random.Random(seed), Keeping(num_blocks=60, max_kept_share=0.5)
    seen, contexts = Counter(), {}
    for n in range(60):
        name, before = f"r{n}", chance.choice([None, *contexts])
        asked = {"keep": chance.choice([2, 20, 200])} if chance.random() < 0.6 else {}
        if before is None:
            body = (
                (20, keeping.author.fork([20, 30]), 10) if chance.random() < 0.4 else (chance.randint(2, 60),)
            )
            request = keeping.ask(
                name, *body, prompt=keeping.author.text(chance.randint(4, 300)), forkjoin=asked
            )
        else:
            request = keeping.goes_on(name, contexts[before], asked | {"continues": before})
        for _ in range(chance.randint(0, 40)):
            keeping.clock.now += chance.random() * 0.2
            keeping.step()
        if chance.random() < 0.2:
            keeping.ask(f"big {n}", 8, prompt=keeping.author.text(700), forkjoin={})
        if chance.random() < 0.05:
            keeping.scheduler.reset_prefix_cache(reset_running_requests=True)
            keeping.check()
        if chance.random() < 0.1:
            keeping.cancel([name])
            keeping.check()
        if chance.random() < 0.2:
            seen[keeping.scheduler.release_kept(chance.choice(list(contexts) or ["a"]), "")] += 1
        contexts[name] = list(request.all_token_ids)[:400]
    keeping.drain()
    seen.update(event["state"] for event in keeping.told("continued"))
    seen.update(f"ended: {end}" for event in keeping.told("leased") for end in event["ends"])
    assert {"ended: expired", "ended: pressure"} <= set(seen), seen
    keeping.clock.now += 1000
    keeping.step()
    assert keeping.is_empty()
    assert not keeping.leasing._held
    assert not keeping.leasing._asked
