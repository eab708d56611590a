"""Several LoRA adapters in a batch: no step has more of them than there is room for."""

from __future__ import annotations

import pytest

from forkjoin_scheduler.dialects.files import load
from forkjoin_server.start.configuration import EMBEDDED_MODEL

pytestmark = pytest.mark.engine

MAX_LORAS = 2
BRANCHES = {"branches": [{"text": "a"}, {"text": "b"}]}


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


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_threads_that_sit_a_step_out_keep_the_room_of_their_adapter(is_async):
    """Else a request with another takes it, and vLLM's scheduler ends the engine in the step in which they run again."""
    from vllm.lora.request import LoRARequest

    from tests.engine.by_hand import ByHand

    policies = {"thread_policy": f"{__name__}.InTurns"}
    hand = ByHand(
        load("explicit"),
        EMBEDDED_MODEL,
        is_async=is_async,
        filler="y",
        policies=policies,
        max_loras=MAX_LORAS,
    )
    adapters = [None, *(LoRARequest(f"adapter{n}", n, "/none") for n in (1, 2, 3))]
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
