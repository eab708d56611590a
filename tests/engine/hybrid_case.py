"""Forks of a hybrid model, whose layers keep a recurrent state: exact, and each thread on the state at its fork.

``python -m tests.engine.hybrid_case v1 async granite_hybrid`` prints a JSON line: one runner, scheduling and
model, in a process of its own (see ``matrix_case``). What is written is scripted up to the join; the rest the
model decides.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

TWO = "<Parallel>\n<Outlines>\n<Outline>1: x</Outline>\n<Outline>2: y</Outline>\n</Outlines>"
#: One ends in another block than it began in, and the other does not.
THREADS = {"1": "abcdefghij" * 5 + "</Thread>", "2": "klmno</Thread>"}
#: Prompts that end in the middle of a block, and with one.
TEXTS = ("a=48*36, b=57*18", "c=12*34, d=7*8, e=56*78, f=9*9")
#: What the rounding of fp32 may move a logprob by, computed in another batch.
NATS = 1e-3


def scripted(engine: Any, prompts: list[list[int]]) -> bool:
    """Whether the model says after a join of written threads what it says after the same as a prompt."""
    params = engine.scripted(TWO, THREADS, None, max_tokens=200, ignore_eos=True)
    answers = [a.token_ids for a in engine.run(prompts, params)]
    script = {name: params.extra_args[name] for name in ("script", "eos")}
    expected = engine.reference(prompts, extra_args=script, max_tokens=100)
    lengths = [min(len(a), len(e)) for a, e in zip(answers, expected, strict=True)]
    joined = len(engine.tokenizer.encode(TWO + "".join(THREADS.values()))) + 30
    assert min(lengths) > joined, "too little was written after the join"
    return [a[:n] for a, n in zip(answers, lengths, strict=True)] == [
        e[:n] for e, n in zip(expected, lengths, strict=True)
    ]


def explicit(engine: Any, prompt: list[int], num_tokens: int = 24) -> bool:
    """Whether branches after the prompt, and what follows them, are those of plain requests."""
    texts = ["1:a=48*36\n", "2:b=57*18\n"]
    headers, closing = [engine.tokenizer.encode(t) for t in texts], "\ntotal"
    plain = {"forkjoin": {"enabled": False}, "max_tokens": num_tokens, "ignore_eos": True}
    bodies = engine.run([[*prompt, *h] for h in headers], engine.params(**plain))
    joined = [t for h, b in zip(headers, bodies, strict=True) for t in (*h, *b.token_ids)]
    joined += engine.tokenizer.encode(closing)
    (behind,) = engine.run([[*prompt, *joined]], engine.params(**plain))
    asked = {
        "branches": [{"text": t} for t in texts],
        "closing": closing,
        "max_tokens_per_thread": num_tokens,
    }
    params = engine.params(forkjoin=asked, max_tokens=num_tokens * 3, ignore_eos=True)
    (answer,) = engine.run([prompt], params)
    return bool(answer.token_ids == [*joined, *behind.token_ids])


def disturbed(engine: Any, prompts: list[list[int]], seed: int = 0) -> dict[str, Any]:
    """How far families that lose their blocks at any step are from undisturbed ones; what was done to them."""
    from tests.engine.test_pressure import disturb

    params = engine.scripted(TWO, THREADS, None, max_tokens=160, ignore_eos=True, logprobs=0)
    calm = [engine.run([prompt], params)[0] for prompt in prompts]
    ids = [engine.add(prompt, params) for prompt in prompts]
    made = disturb(engine, random.Random(seed))
    answers = engine.drain()
    off = 0.0
    for request_id, undisturbed in zip(ids, calm, strict=True):
        answer = answers[request_id]
        assert answer.token_ids == undisturbed.token_ids
        ours, theirs = (
            [entry[token].logprob for entry, token in zip(a.logprobs, a.token_ids, strict=True)]
            for a in (answer, undisturbed)
        )
        off = max(off, *(abs(a - b) for a, b in zip(ours, theirs, strict=True)))
    return {"off": off, "made": dict(made)}


def first_steps(engine: Any) -> list[int]:
    """Tokens that each thread computed in its first step."""
    first: dict[str, int] = {}
    for step in engine.steps:
        for request_id, num in step.items():
            if "#" in request_id:
                first.setdefault(request_id, num)
    return list(first.values())


def main(runner: str, mode: str, name: str) -> dict[str, Any]:
    """Run a few families; say whether all was exact and all came back."""
    from tests.engine.platform import force_async, use_v2_runner

    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    if runner == "v2":
        use_v2_runner()
    if mode == "async":
        force_async()
    from tests.engine.hybrid_models import engine_of
    from tests.engine.matrix_case import runner_of

    with tempfile.TemporaryDirectory() as folder:
        engine = engine_of(name, lambda _: Path(folder), max_num_seqs=8)
    prompts = [engine.prompt(text) for text in TEXTS]
    executor = engine.core.engine_core.engine_core.model_executor
    found: dict[str, Any] = {"scripted": scripted(engine, prompts), "first": first_steps(engine)}
    found |= {"explicit": explicit(engine, prompts[0])}
    found |= disturbed(engine, prompts) if runner == "v1" else {}
    return found | {
        "runner": executor.collective_rpc(runner_of)[0],
        "async": engine.core.vllm_config.scheduler_config.async_scheduling,
        "returned": engine.snapshot() == engine.baseline,
    }


if __name__ == "__main__":
    print("CASE " + json.dumps(main(*sys.argv[1:4])))
