"""Families on a real engine that lose their KV to each other, and load it by vLLM's ``OffloadingConnector``.

``python -m tests.engine.offloaded_case v1 async`` prints a JSON line: one runner and scheduling, in a process of
its own (see ``matrix_case``). The copies are those of ``host_offloading.py``, for vLLM's own refuse a CPU; all else is vLLM's. With a folder beside
it, what is stored is kept in files of that, too.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from tests.engine.hybrid_case import THREADS, TWO
from tests.engine.matrix_case import runner_of

#: Long enough that there are whole blocks to store.
TEXTS = ("a=48*36, b=57*18, " * 5, "c=12*34, d=7*8, e=56*78, " * 3, "f=9*9, g=24*35, h=4*62, " * 3)
#: For the V2 runner, which takes no script: the model itself forks over these.
OWN_TEXTS = ("a=48*36, b=57*18", "c=82*34, d=56*78", "f=24*35, g=62*47")
#: What is written after the join.
AFTER = "pqrstuvwxyz" * 4
#: Blocks for the longest context, and for no two families.
BLOCKS = {"max_model_len": 320, "num_gpu_blocks_override": 16}
OWN_BLOCKS = {"max_model_len": 640, "num_gpu_blocks_override": 22, "logits_processors": None}
#: Bytes of the host's memory, for more blocks than the engine has.
HOST_BYTES = 1 << 26


def came_to(answers: list[Any]) -> dict[str, Any]:
    """What a run of ``answers`` came to: whether each forked, its tokens and their log-probabilities."""
    return {
        "forked": ["<Thread>" in answer.text for answer in answers],
        "tokens": [answer.token_ids for answer in answers],
        "logprobs": [
            [of[token].logprob for of, token in zip(answer.logprobs, answer.token_ids, strict=True)]
            for answer in answers
        ],
    }


def count_loads(scheduler: Any) -> list[int]:
    """A list that gets the number of tokens of each load from now on."""
    loaded: list[int] = []
    allocated = scheduler.connector.update_state_after_alloc

    def noted(request: Any, blocks: Any, num_tokens: int) -> None:
        loaded.extend([num_tokens] if num_tokens else [])
        allocated(request, blocks, num_tokens)

    scheduler.connector.update_state_after_alloc = noted
    return loaded


def main(runner: str, mode: str, folder: str | None = None) -> dict[str, Any]:
    """Run a few families alone and together; return what each run came to."""
    from tests.engine.platform import force_async, use_v2_runner

    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    if runner == "v2":
        use_v2_runner()
    if mode == "async":
        force_async()
    from forkjoin_bench.vllm_seam.offloading import offloading
    from tests.engine.harness import Engine

    connects = offloading(2, HOST_BYTES, folder)
    is_scripted = runner == "v1"
    sizes: dict[str, Any] = BLOCKS if is_scripted else OWN_BLOCKS
    engine = Engine(policies={"admission": "greedy"}, max_num_seqs=16, kv_transfer_config=connects, **sizes)
    loaded = count_loads(engine.scheduler)
    prompts = [engine.prompt(text) for text in (TEXTS if is_scripted else OWN_TEXTS)]
    if is_scripted:
        params = engine.scripted(TWO, THREADS, AFTER, max_tokens=400, logprobs=0)
    else:
        params = engine.params(max_tokens=600, logprobs=0)
    alone = [engine.run([prompt], params)[0] for prompt in prompts]
    num_loads = len(loaded)
    together = engine.run(prompts, params)
    while engine.scheduler.connector.has_pending_push_work():
        engine.core.step()  # what the connector still copies
    executor = engine.core.engine_core.engine_core.model_executor
    found = {
        "runner": executor.collective_rpc(runner_of)[0],
        "async": engine.core.vllm_config.scheduler_config.async_scheduling,
        "returned": engine.snapshot() == engine.baseline,
        "alone": came_to(alone) | {"loads": num_loads},
        "together": came_to(together) | {"loads": len(loaded) - num_loads},
    }
    engine.scheduler.connector.shutdown()
    return found


if __name__ == "__main__":
    print("CASE " + json.dumps(main(*sys.argv[1:])))
