"""Forks after an image as GPUs run them by default: the V2 runner, under Triton's interpreter, with steps in flight.

``python -m tests.engine.images_case`` prints a JSON line: whether branches, which join by prefilling, are exact;
how far a stitched join is from transformers; and whether both are the same when they lose KV and encoded image.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

LIMITS = {"max_tokens": 54, "logprobs": 0, "ignore_eos": True}


def main() -> dict[str, Any]:
    """Run both, in a process of its own."""
    from tests.engine.platform import force_async, use_v2_runner

    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    use_v2_runner()
    force_async()
    from tests.engine.harness import Engine
    from tests.engine.image_model import ImageReference, do_without_torchvision, image_model, with_image
    from tests.engine.matrix_case import runner_of
    from tests.engine.path_model import take_apart
    from tests.engine.renamed import PARATHINKER, dialect_for

    do_without_torchvision(pytest.MonkeyPatch())
    model = image_model(Path(tempfile.mkdtemp()), PARATHINKER)
    engine = Engine(
        dialect_for("parathinker"), model, max_num_batched_tokens=128, max_model_len=512, max_num_seqs=8,
        logits_processors=None, limit_mm_per_prompt={"image": 1, "video": 0}, skip_mm_profiling=True,
        mm_processor_cache_gb=0,
    )  # fmt: skip
    prompt = with_image(engine, "q", 4)
    paths = engine.params(forkjoin={"max_tokens_per_thread": 10}, **LIMITS)
    branches = engine.params(
        forkjoin={
            "branches": [{"text": "1:a"}, {"text": "2:bb"}],
            "closing": "\nso",
            "max_tokens_per_thread": 10,
        },
        **LIMITS,
    )
    stitched, prefilled = engine.run([prompt, prompt], [paths, branches])
    told = take_apart(engine, prompt["prompt_token_ids"], stitched)
    max_delta, num_others = told.errors(ImageReference(model).logprobs(engine, "q", 4, told.context))
    ids = [engine.add(prompt, params) for params in (paths, branches)]
    for _ in range(8):
        engine.step()
    engine.scheduler.reset_prefix_cache(reset_running_requests=True)
    engine.core.engine_core.engine_core.reset_encoder_cache()
    again = engine.drain()
    executor = engine.core.engine_core.engine_core.model_executor
    return {
        "runner": executor.collective_rpc(runner_of),
        "async": engine.core.vllm_config.scheduler_config.async_scheduling,
        "branches": _are_exact(engine, prefilled.token_ids),
        "max_delta": max_delta,
        "others": num_others,
        "again": [again[i].token_ids for i in ids] == [stitched.token_ids, prefilled.token_ids],
        "returned": engine.snapshot() == engine.baseline,
    }


def _are_exact(engine: Any, token_ids: list[int]) -> bool:
    """Whether branches and what follows them are what plain requests with the image write."""
    from tests.engine.image_model import with_image

    def plain(behind: list[int], num_tokens: int) -> list[int]:
        params = engine.params(forkjoin={"enabled": False}, max_tokens=num_tokens, ignore_eos=True)
        return list(engine.run([with_image(engine, "q", 4, behind)], params)[0].token_ids)

    encode = engine.tokenizer.encode
    joined = [t for header in ("1:a", "2:bb") for t in (*encode(header), *plain(encode(header), 10))]
    joined += encode("\nso")
    return token_ids == [*joined, *plain(joined, len(token_ids) - len(joined))]


if __name__ == "__main__":
    print("CASE " + json.dumps(main()))
