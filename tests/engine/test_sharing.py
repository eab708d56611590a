"""Keys' requests start in turn: the scheduler, no model."""

from __future__ import annotations

import random

import pytest
from vllm import SamplingParams
from vllm.v1.core.sched.request_queue import FCFSRequestQueue, PriorityRequestQueue, SchedulingPolicy
from vllm.v1.request import Request, RequestStatus

from forkjoin_scheduler.request.visits import TENANT
from forkjoin_scheduler.vllm_seam.starts.sharing import SharedQueue
from tests.engine.fed import Scripted

pytestmark = pytest.mark.engine


def _send(fed, tenant, num, *, weight=1.0, priority=0, first=0):
    """Families of three threads, of one key."""
    for i in range(first, first + num):
        fork = fed.author.fork([24, 20, 16])
        extra = {TENANT: {"id": tenant, "weight": weight}} if tenant else {}
        fed.add(f"{tenant}{i}", 2, fork, 12, priority=priority, extra_args=extra)


def _order_of_starts(fed):
    """The requests in the order in which they were scheduled first, once all have ended."""
    started = []
    while fed.scheduler.requests:
        for name in fed.step().num_scheduled_tokens:
            if "#" not in name and name not in started:
                started.append(name)
    assert all(outputs[-1].finished for outputs in fed.outputs.values())
    return started


def test_who_sends_few_does_not_wait_for_all_of_who_sends_many():
    fed = Scripted(num_blocks=100, max_num_seqs=4)
    _send(fed, "a", 60)
    _send(fed, "b", 3)
    started = _order_of_starts(fed)
    assert len(started) == 63
    assert {"b0", "b1", "b2"} <= set(started[:8])


def test_keys_that_always_wait_start_by_their_weights():
    fed = Scripted(num_blocks=100, max_num_seqs=4)
    _send(fed, "a", 40, weight=3.0)
    _send(fed, "b", 40)
    first = "".join(name[0] for name in _order_of_starts(fed)[:32])
    assert 22 <= first.count("a") <= 26


def test_without_keys_all_start_as_they_came():
    fed = Scripted(num_blocks=100, max_num_seqs=4)
    _send(fed, "", 30)
    assert _order_of_starts(fed) == [f"{i}" for i in range(30)]


def test_the_urgent_of_a_key_start_before_its_others_and_not_before_anothers():
    fed = Scripted(num_blocks=100, max_num_seqs=4, policy="priority")
    _send(fed, "a", 10)
    _send(fed, "a", 10, priority=-9, first=10)
    _send(fed, "b", 10, priority=5)
    started = _order_of_starts(fed)
    own = [name for name in started if name[0] == "a"]
    assert {int(name[1:]) for name in own[:10]} == set(range(10, 20))
    assert sum(name[0] == "b" for name in started[:16]) >= 6


def test_who_hangs_up_while_it_waits_is_charged_nothing():
    fed = Scripted(num_blocks=100, max_num_seqs=4)
    _send(fed, "a", 20)
    _send(fed, "b", 20)
    for _ in range(3):
        fed.step()
    waiting = [r.request_id for r in fed.scheduler.waiting if r.request_id[0] == "a"]
    before = fed.scheduler._gate.queue._queue.given("a")
    fed.scheduler.finish_requests(waiting[:10], RequestStatus.FINISHED_ABORTED)
    assert fed.scheduler._gate.queue._queue.given("a") == before
    for name in waiting[:10]:
        del fed.outputs[name]
    assert len(_order_of_starts(fed)) >= 20


def test_when_all_have_ended_each_key_was_charged_with_what_it_wrote():
    fed = Scripted(num_blocks=200, max_num_seqs=8)
    _send(fed, "a", 6)
    _send(fed, "b", 6)
    requests = dict(fed.scheduler.requests)
    ended = {}
    free = fed.scheduler._gate.queue.ended

    def noted(request, cost):
        if request.request_id in requests:
            ended[request.request_id] = cost
        free(request, cost)

    fed.scheduler._gate.queue.ended = noted
    _order_of_starts(fed)
    queue = fed.scheduler._gate.queue._queue
    assert len(ended) == 12
    for tenant in "ab":
        own = sum(cost for name, cost in ended.items() if name[0] == tenant)
        # b comes second, and was lifted to where a was by then
        assert queue.given(tenant) == pytest.approx(own, rel=0.01)


# ---- as vLLM's own queues, where there is one key --------------------------------------------


def _request(name, priority):
    return Request(
        request_id=name,
        prompt_token_ids=[1, 2, 3],
        sampling_params=SamplingParams(),
        pooling_params=None,
        arrival_time=float(name),
        priority=priority,
    )


@pytest.mark.parametrize("policy", list(SchedulingPolicy))
@pytest.mark.parametrize("seed", range(20))
def test_of_one_key_it_is_vllms_queue(policy, seed):
    rng = random.Random(seed)
    ours = SharedQueue(policy, lambda request: 1 + request.priority % 3)
    theirs = FCFSRequestQueue() if policy == SchedulingPolicy.FCFS else PriorityRequestQueue()
    skipped = []
    for number in range(200):
        move = rng.choice(["add", "add", "pop", "skip", "back", "remove", "remove_all"])
        if move == "add":
            request = _request(str(number), rng.randint(-1, 1))
            ours.add_request(request)
            theirs.add_request(request)
        elif move == "back":
            ours.prepend_requests(skipped)
            theirs.prepend_requests(skipped)
            skipped = []
        elif theirs and move in ("pop", "skip"):
            request = theirs.pop_request()
            assert ours.peek_request() is request
            assert ours.pop_request() is request
            skipped = [request, *skipped] if move == "skip" else skipped
        elif theirs and move == "remove":
            request = rng.choice(list(theirs))
            ours.remove_request(request)
            theirs.remove_request(request)
        elif theirs:
            some = set(rng.sample(list(theirs), rng.randint(0, len(theirs))))
            ours.remove_requests(some)
            theirs.remove_requests(some)
        assert (len(ours), bool(ours), set(ours)) == (len(theirs), bool(theirs), set(theirs))
