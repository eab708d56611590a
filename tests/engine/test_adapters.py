"""Several LoRA adapters in a batch: each thread uses its request's, on KV of that alone, and no step has more than fit."""

from __future__ import annotations

from itertools import combinations

import pytest

from forkjoin_scheduler.dialects.files import load
from forkjoin_server.start.configuration import EMBEDDED_MODEL
from tests.engine.conftest import worksheets
from tests.engine.processes import case_of

pytestmark = pytest.mark.engine

MAX_LORAS = 2
BRANCHES = {"branches": [{"text": "a"}, {"text": "b"}]}
#: What the rounding of fp32 may move a logprob by, and what another adapter moves it by at least.
NATS, VISIBLE_NATS = 1e-3, 0.1


class InTurns:
    """A policy of a user's own: of families that run, the threads of one sit each step out."""

    def __init__(self) -> None:
        self._num_asked = 0

    def choose(self, facts):
        """All threads but those of one family."""
        families = sorted({thread.family for thread in facts.threads})
        self._num_asked += 1
        sits_out = families[self._num_asked % len(families)] if len(families) > 1 else None
        return {thread.key for thread in facts.threads if thread.family != sits_out}


def _by_hand(*, is_async, max_loras=MAX_LORAS, **more):
    from vllm.lora.request import LoRARequest

    from tests.engine.by_hand import ByHand

    adapters = [None, *(LoRARequest(f"adapter{n}", n, "/none") for n in (1, 2, 3))]
    dialect = load("explicit")
    return ByHand(
        dialect, EMBEDDED_MODEL, is_async=is_async, filler="y", max_loras=max_loras, **more
    ), adapters


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_threads_that_sit_a_step_out_keep_the_room_of_their_adapter(is_async):
    """Else a request with another takes it, and vLLM's scheduler ends the engine in the step in which they run again."""
    hand, adapters = _by_hand(is_async=is_async, policies={"thread_policy": f"{__name__}.InTurns"})
    for number, lora in enumerate(adapters):
        hand.add(f"r{number}", "q", lora, forkjoin=BRANCHES, max_tokens=24)
    together = []
    while hand.scheduler.requests:
        hand.step()
        running = [r for r in hand.scheduler.running if r.lora_request]
        together.append({r.lora_request.lora_int_id for r in running})
        assert hand.num_steps < 400
    assert max(map(len, together)) == MAX_LORAS
    assert set().union(*together) == {1, 2, 3}
    assert all(len(hand.text(f"r{number}")) > 20 for number in range(4))
    hand.finish()


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_a_kept_answer_is_found_by_requests_with_its_adapter_only_and_so_is_what_evicted_families_left(
    is_async,
):
    """The prompts are the same. What is computed of them is compared with the KV that it reads (``kv_oracle``)."""
    hand, adapters = _by_hand(is_async=is_async, max_loras=3)
    prompt, asked = "q" * 40, {"keep": 600, **BRANCHES, "closing": "c", "max_tokens_per_thread": 24}
    for number, lora in enumerate(adapters):
        hand.add(f"r{number}", prompt, lora, forkjoin=asked, max_tokens=80)
    hand.step(12)
    for live in list(hand.scheduler._core.live.values()):
        hand.scheduler._eviction.evict(live)
    hand.steps_until(lambda: not hand.scheduler.requests)
    for number, lora in enumerate(adapters):
        hand.add(
            f"again{number}",
            prompt + hand.text("r1"),
            lora,
            forkjoin={"continues": "r1", "enabled": False},
            max_tokens=4,
        )
    hand.step()
    (lease,) = (lease for lease in hand.scheduler._core.leases if lease.name == "r1")
    assert lease.num_tokens > len(prompt) + 2 * 24, "the joined context is kept"
    (single,) = hand.scheduler.kv_cache_manager.coordinator.single_type_managers
    found = [
        len(lease.blocks & {b.block_id for b in single.req_to_blocks[f"again{number}"]})
        for number in range(len(adapters))
    ]
    assert found == [0, len(lease.blocks), 0, 0]
    hand.steps_until(lambda: not hand.scheduler.requests)
    assert hand.oracle.num_compared > 100
    assert [hand.scheduler.release_kept(f"r{number}", "") for number in range(4)] == ["released"] * 4
    hand.finish()


V1 = [("v1", "sync", 1), ("v1", "async", 1), ("v1", "sync", 2)]
V2 = [("v2", "sync", 1), ("v2", "async", 1)]
RUNS = [(*run, "reprefill") for run in V1 + V2] + [(*run, "stitch") for run in (*V1, V2[1])]


@pytest.mark.parametrize(("runner", "mode", "ranks", "join"), RUNS, ids=str)
def test_families_with_several_adapters_and_without_one_in_one_batch_are_each_as_it_is_alone(
    runner, mode, ranks, join
):
    case = case_of("tests.engine.adapters_case", runner, mode, join, ranks)
    assert (case["runner"], case["async"], case["ranks"]) == (runner, mode == "async", ranks)
    # threads with no adapter and with two compute in one step, and the third waits for its turn
    assert (case["together"], case["most_adapters"]) == (MAX_LORAS + 1, MAX_LORAS)
    assert max(case["max_delta"], case["restored"]) < NATS
    assert case["control"] > VISIBLE_NATS
    # what a family has written is found by requests with its adapter only
    for own, row in enumerate(case["found"]):
        assert [num > 0 for num in row] == [other == own for other in range(len(row))]
    assert case["shared_blocks"] == []
    assert not case["shared_hashes"]
    assert case["returned"]


def test_answers_of_the_model_with_two_adapters_and_without_one_are_those_of_a_client_each(tmp_path):
    """The model itself forks over these, as each adapter has it."""
    from tests.engine.adapters import RANK, adapter
    from tests.engine.harness import Engine

    engine = Engine(enable_lora=True, max_lora_rank=RANK, max_loras=MAX_LORAS)
    adapters = [None, *(adapter(n, tmp_path / str(n), EMBEDDED_MODEL) for n in (1, 2))]
    prompts = [engine.prompt(s.prompt) for s in worksheets(3, seed=61)]
    owners = {}
    for engine.lora in adapters:
        params = engine.params(max_tokens=1500, logprobs=0)
        owners |= {engine.add(prompt, params): engine.lora for prompt in prompts}
    answers = engine.drain()
    logprobs = []
    for lora in adapters:
        own = [answers[i] for i, owner in owners.items() if owner is lora]
        forked = [n for n, answer in enumerate(own) if "</Parallel>" in answer.text]
        assert forked
        engine.lora = lora
        assert [own[n].token_ids for n in forked] == engine.reference([prompts[n] for n in forked])
        logprobs.append([e[t].logprob for a in own for e, t in zip(a.logprobs, a.token_ids, strict=True)])
    for one, other in combinations(logprobs, 2):
        assert max(abs(a - b) for a, b in zip(one, other, strict=False)) > 10 * NATS
    assert engine.snapshot() == engine.baseline
