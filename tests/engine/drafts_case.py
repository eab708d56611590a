"""Drafted answers against undrafted ones: one cell of {V1, V2 runner} x {sync, async} x {drafter}, in a process.

``python -m tests.engine.drafts_case v1 sync ngram 6`` prints a JSON line: what came of so many worksheets
together, with drafts and without, on the same weights.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

MAX_TOKENS = 3000
#: Steps after which all that runs is robbed of its KV.
STEPS_TO_ROBBERY = 25


def come_to(engine: Any, prompts: list[list[int]], params: Any, *, robbed: bool = False) -> dict[str, Any]:
    """What ``prompts`` together come to, how many threads ran for each, and in how many steps.

    If they are ``robbed``, all that runs loses its KV now and then, as where blocks are short.
    """
    engine.steps.clear()
    ids = [engine.add(prompt, params) for prompt in prompts]
    while robbed and engine.core.has_unfinished_requests():
        engine.step()
        if len(engine.steps) % STEPS_TO_ROBBERY == 0:
            engine.core.reset_prefix_cache(reset_running_requests=True)
    answers = engine.drain()
    ran = {i for step in engine.steps for i in step if "#" in i and "#fill" not in i}
    return {
        "answers": [answers[i].token_ids for i in ids],
        "logprobs": [
            [e[t].logprob for e, t in zip(answers[i].logprobs, answers[i].token_ids, strict=True)]
            for i in ids
        ],
        "threads": [sum(t.startswith(f"{i}-") for t in ran) for i in ids],  # vLLM's ids have more behind ours
        "num_steps": len(engine.steps),
    }


def stopped_at(engine: Any, prompts: list[list[int]], text: str) -> list[tuple[str, int | str | None]]:
    """What ``prompts`` together come to up to ``text``, and what ends each."""
    answers = engine.run(prompts, engine.params(max_tokens=MAX_TOKENS, stop=[text]))
    return [(answer.text, answer.stop_reason) for answer in answers]


def several(engine: Any, prompt: list[int]) -> list[list[int]]:
    """What ``prompt`` comes to twice, asked for at once; next to greedy, which may be asked for once only."""
    params = engine.params(max_tokens=MAX_TOKENS, n=2, temperature=0.01, seed=1)
    (output,) = engine.llm.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)
    return [list(answer.token_ids) for answer in output.outputs]


def main(runner: str, mode: str, method: str, num: int, dialect: str = "threadweaver") -> dict[str, Any]:
    """Run the worksheets on both; say whether all was exact and all came back."""
    from tests.engine.platform import force_async, run_engines_alone, use_v2_runner

    run_engines_alone()
    if runner == "v2":
        use_v2_runner()
    if mode == "async":
        force_async()
    from forkjoin_scheduler.dialects.files import load
    from tests.engine.conftest import worksheets
    from tests.engine.drafters import drafter, with_mtp
    from tests.engine.harness import Engine
    from tests.engine.matrix_case import runner_of
    from tests.engine.renamed import model_for

    with tempfile.TemporaryDirectory() as of_model, tempfile.TemporaryDirectory() as of_drafter:
        model = model_for(dialect, lambda _: Path(of_model))
        if method == "mtp":
            model = with_mtp(model, Path(of_drafter))
        made = [
            Engine(load(dialect), model, max_num_seqs=64, max_model_len=4096, logits_processors=None, **more)
            for more in ({}, {"speculative_config": drafter(method, Path(of_drafter))})
        ]
    plain, drafted = made
    prompts = [plain.prompt(w.prompt) for w in worksheets(num)]
    params = plain.params(max_tokens=MAX_TOKENS, logprobs=0)
    wanted, found = (come_to(engine, prompts, params) for engine in made)
    robbed = come_to(drafted, prompts, params, robbed=True)
    middle = plain.tokenizer.decode(wanted["answers"][0][len(wanted["answers"][0]) // 2 :][:3])
    widest = wanted["threads"].index(max(wanted["threads"]))
    request_id = drafted.add(prompts[widest], drafted.params())
    drafted.step_until(lambda: any("#" in i for i in drafted.scheduler.requests))
    drafted.core.abort_request([request_id])
    drafted.drain()
    deltas = [
        abs(a - b)
        for one, other in zip(wanted["logprobs"], found["logprobs"], strict=True)
        for a, b in zip(one, other, strict=False)
    ]
    (runner_name,) = drafted.core.engine_core.engine_core.model_executor.collective_rpc(runner_of)
    return {
        "runner": runner_name,
        "async": drafted.core.vllm_config.scheduler_config.async_scheduling,
        "num_equal": [
            sum(a == b for a, b in zip(wanted["answers"], of["answers"], strict=True))
            for of in (found, robbed)
        ],
        "threads": [of["threads"] for of in (wanted, found, robbed)],
        "num_steps": [of["num_steps"] for of in (wanted, found)],
        "stopped": [stopped_at(engine, prompts, middle) for engine in made],
        "several": [several(engine, prompts[widest]) for engine in made],
        "max_delta": max(deltas),
        "returned": drafted.snapshot() == drafted.baseline,
    }


if __name__ == "__main__":
    print("CASE " + json.dumps(main(*sys.argv[1:4], int(sys.argv[4]), *sys.argv[5:])))
