"""Families with several LoRA adapters and without one in one batch, on one runner: in a process of its own.

``python -m tests.engine.adapters_case v2 async reprefill 1`` prints a JSON line (1: tensor parallel size): how far
log-probabilities of families are off those of plain requests with the same contexts and adapter, undisturbed and where
they lost their blocks on the way; and what requests found in the prefix cache of others with another adapter. With
``stitch`` they are compared with those of transformers, which adds the adapter to the weights.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tests.engine.shape_case import delta, engine_of, forking, lose_blocks, start, stitching

#: Adapters of requests, of which so many fit into a step.
NUM_ADAPTERS, MAX_LORAS = 3, 2
TEXTS = ("qa", "x")

#: How far the log-probabilities of an answer are off: of (the adapter to compare with, the prompt, the answer).
Judge = Callable[[Any, list[int], Any], float]


class Blocks:
    """Sees, after each step is scheduled, which requests hold which KV blocks, and by which hashes they are found."""

    def __init__(self, engine: Any) -> None:
        #: Pairs of adapters that held one block at once.
        self.shared: set[tuple[int, int]] = set()
        #: Of the blocks of requests with each adapter.
        self.hashes: dict[int, set[Any]] = {}
        #: The adapters whose threads have computed in one step.
        self.together: set[frozenset[int]] = set()
        self._scheduler = engine.scheduler
        schedule = engine.scheduler.schedule

        def scheduled(*args: Any, **named: Any) -> Any:
            output = schedule(*args, **named)
            self._look(output)
            return output

        engine.scheduler.schedule = scheduled

    def _look(self, output: Any) -> None:
        requests = self._scheduler.requests
        adapter_of = {i: r.lora_request.lora_int_id if r.lora_request else 0 for i, r in requests.items()}
        for request in requests.values():
            self.hashes.setdefault(adapter_of[request.request_id], set()).update(request.block_hashes)
        for single in self._scheduler.kv_cache_manager.coordinator.single_type_managers:
            holders: dict[int, int] = {}
            for request_id, blocks in single.req_to_blocks.items():
                for block in blocks:
                    other = holders.setdefault(block.block_id, adapter_of[request_id])
                    if other != adapter_of[request_id] and not block.is_null:
                        self.shared.add((other, adapter_of[request_id]))
        self.together.add(frozenset(adapter_of[i] for i in output.num_scheduled_tokens if "#" in i))


def main(runner: str, mode: str, join: str, ranks: int) -> dict[str, Any]:
    """Run families of the same prompts with each adapter and without, all at once."""
    start(runner, mode)
    from tests.engine.adapters import RANK, adapter
    from tests.engine.matrix_case import runner_of
    from tests.engine.shapes import SHAPES, checkpoint

    with tempfile.TemporaryDirectory() as name:
        folder, shape = Path(name), SHAPES["llama"]
        (folder / "model").mkdir()
        model = checkpoint(shape, folder / "model")
        options = {"enable_lora": True, "max_lora_rank": RANK, "max_loras": MAX_LORAS}
        engine = engine_of(shape, model, join, **options, tensor_parallel_size=ranks)
        adapters = [None]
        for number in range(1, NUM_ADAPTERS + 1):
            adapters.append(adapter(number, folder / str(number), model, projections="qkvo", scale=0.1))
        params = stitching(engine) if join == "stitch" else forking(engine)
        judge = against_transformers(engine, model) if join == "stitch" else against_plain_requests(engine)
        blocks = Blocks(engine)
        found = found_again(engine, adapters, params)
        texts = TEXTS if runner == "v1" else TEXTS[:1]  # Triton's interpreter takes minutes
        calm, lost = (run_at_once(engine, texts, adapters, params, loses=loses) for loses in (False, True))
        wrong = {lora: adapters[n - 1] for n, lora in enumerate(adapters)}
        measured = {
            "max_delta": max(judge(*told) for told in calm),
            "restored": max(judge(*told) for told in lost),
            "control": min(judge(wrong[lora], *told) for lora, *told in calm),
        }
    executor = engine.core.engine_core.engine_core.model_executor
    (runner_name,) = set(executor.collective_rpc(runner_of))
    hashes = list(blocks.hashes.values())
    return measured | {
        "runner": runner_name,
        "ranks": executor.parallel_config.world_size,
        "async": engine.core.vllm_config.scheduler_config.async_scheduling,
        "returned": engine.snapshot() == engine.baseline,
        "found": found,
        "shared_blocks": sorted(blocks.shared),
        "shared_hashes": len(set.union(*hashes)) != sum(map(len, hashes)),
        "together": max(map(len, blocks.together)),
        "most_adapters": max(len(step - {0}) for step in blocks.together),
    }


def run_at_once(
    engine: Any, texts: Sequence[str], adapters: list[Any], params: Any, *, loses: bool
) -> list[tuple[Any, list[int], Any]]:
    """The answers of families of all prompts with each adapter: with the adapter and the prompt."""
    prompts = [engine.prompt(text * 40) for text in texts]
    asked = {}
    for prompt in prompts:
        for engine.lora in adapters:
            asked[engine.add(prompt, params)] = engine.lora, prompt
    if loses:
        lose_blocks(engine)
    answers = engine.drain()
    return [(*asked[request_id], answer) for request_id, answer in answers.items()]


def against_plain_requests(engine: Any) -> Judge:
    """Of branches and what follows them: each plain request has the adapter."""

    def off(lora: Any, prompt: list[int], answer: Any) -> float:
        engine.lora = lora
        return delta(engine, prompt, answer)

    return off


def against_transformers(engine: Any, model: Path) -> Judge:
    """Of ParaThinker's paths and their summary."""
    from tests.engine.path_model import take_apart
    from tests.engine.shape_reference import ShapeReference

    @cache
    def reference(lora: Any) -> ShapeReference:
        return ShapeReference(model, engine, Path(lora.lora_path) if lora else None)

    def off(lora: Any, prompt: list[int], answer: Any) -> float:
        told = take_apart(engine, prompt, answer)
        return told.errors(reference(lora).logprobs(told.context))[0]

    return off


def found_again(engine: Any, adapters: list[Any], params: Any) -> list[list[int]]:
    """Tokens that requests with each adapter find in the prefix cache of what a family wrote: a row for its adapter."""
    found = []
    for number, lora in enumerate(adapters):
        engine.lora = lora
        prompt = engine.prompt("abcd"[number] * 80)
        (answer,) = engine.run([prompt], params)
        context = [*prompt, *answer.token_ids]
        found.append([len(context) - num_computed(engine, context, other) for other in adapters])
    return found


def num_computed(engine: Any, context: list[int], lora: Any) -> int:
    """Tokens of a plain request on ``context`` that are computed."""
    engine.lora = lora
    engine.steps.clear()
    engine.run([context], engine.params(forkjoin={"enabled": False}, max_tokens=1))
    return sum(num for step in engine.steps for num in step.values())


if __name__ == "__main__":
    print("CASE " + json.dumps(main(*sys.argv[1:4], int(sys.argv[4]))))
