"""One cell of {V1, V2 runner} x {sync, async scheduling}, in a process of its own.

``python -m tests.engine.matrix_case v2 async 1 stitch`` prints a JSON line (1: tensor parallel size; stitch
or reprefill: the kind of join; paths: a stitch with path embeddings). A fifth argument, pipeline, makes the ranks
stages of a pipeline. What GPUs run by default (V2, async) runs here on the CPU: V2 under Triton's
interpreter, async with CUDA's streams stubbed.
"""

from __future__ import annotations

import json
import os
import random
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from forkjoin_scheduler.policy.pruning import Pruning, VoteFacts


def runner_of(worker: Any) -> str:
    """The model runner of a worker: v1 or v2."""
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner as V2Runner

    return "v2" if isinstance(worker.model_runner, V2Runner) else "v1"


def main(runner: str, mode: str, ranks: int, join: str, parallel: str = "tensor") -> dict[str, Any]:
    """Run a few worksheets and aborts; say whether all was exact and all came back."""
    from tests.engine.platform import force_async, use_v2_runner

    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    if runner == "v2":
        use_v2_runner()
    if mode == "async":
        force_async()
    from forkjoin_scheduler.dialects.files import load
    from tests.engine.harness import THREADWEAVER, Engine
    from tests.engine.path_model import path_dialect, path_model
    from tests.engine.renamed import MULTIVERSE, with_tokens

    is_stitched = join != "reprefill"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        spoken: tuple[Any, ...] = (THREADWEAVER,)
        if join == "stitch":
            spoken = load("multiverse"), with_tokens(folder, MULTIVERSE)
        elif join == "paths":
            spoken = path_dialect(), path_model(folder)
        engine = Engine(
            *spoken,
            max_num_seqs=16,
            max_num_batched_tokens=512,
            max_model_len=1024,
            logits_processors=None,
            reasoning_parser="" if is_stitched else "deepseek_r1",
            **_parallel(parallel, ranks),
        )
        compare = {"stitch": _stitched, "reprefill": _linear}.get(join) or _paths(spoken[1])
    executor = engine.core.engine_core.engine_core.model_executor
    (runner_name,) = set(executor.collective_rpc(runner_of))
    texts = ["a=48*36, b=57*18", "a=12*34, b=7*8, c=56*78"] + ["a=482*731, b=64*28, c=91*73"] * (
        runner == "v1"
    )
    prompts = [engine.prompt(t) for t in texts[: 2 if is_stitched else None]]
    limits = {"forkjoin": {"max_tokens_per_thread": 40}, "ignore_eos": True} if join == "paths" else {}
    params = engine.params(max_tokens=500 if is_stitched else 900, logprobs=0, **limits)
    engine.steps.clear()
    answers = engine.run(prompts, params)
    steps = list(engine.steps)
    found = compare(engine, prompts, params, answers)
    request_id = engine.add(prompts[0], engine.params())
    engine.step_until(lambda: any("#" in i for i in engine.scheduler.requests))
    engine.core.abort_request([request_id])
    engine.drain()
    return found | {
        "runner": runner_name,
        "ranks": executor.parallel_config.world_size,
        "async": engine.core.vllm_config.scheduler_config.async_scheduling,
        "num_threads": len({i for s in steps for i in s if "#" in i and "#fill" not in i}),
        "returned": engine.snapshot() == engine.baseline,
        "first_thread_step_tokens": next(s[i] for s in steps for i in s if "#" in i),
    }


def _parallel(kind: str, ranks: int) -> dict[str, Any]:
    """Options of ``kind`` parallelism. Stages have buffers between them that vLLM makes in a warm-up only."""
    if kind == "tensor":
        return {"tensor_parallel_size": ranks}
    return {
        "pipeline_parallel_size": ranks,
        "enforce_eager": False,
        "compilation_config": {"mode": 2, "backend": "eager"},
    }


def _linear(engine: Any, prompts: list[list[int]], params: Any, answers: list[Any]) -> dict[str, Any]:
    exact = [a.token_ids for a in answers] == engine.reference(prompts)
    return {
        "exact": exact and explicit_is_exact(engine, prompts[0]),
        "drawn": explicit_is_exact(engine, prompts[0], seed=7),
        "obeys": _structured_is_exact(engine, prompts[0], answers[0].token_ids),
        "restless": _run_restless(engine, prompts) == [a.token_ids for a in answers],
    }


class Restless:
    """A policy under which threads sit out steps as chance has it, all but one of each family."""

    def __init__(self) -> None:
        self._random = random.Random(1)

    def choose(self, facts: Any) -> set[str]:
        """One thread of each family, and some of the others."""
        keys = {t.family: t.key for t in facts.threads}
        return {*keys.values(), *(t.key for t in facts.threads if self._random.random() < 0.5)}


class Fickle(Pruning):
    """Stops threads of a vote as chance has it, and asks for probes."""

    probe_every, ask_every = 2, 1

    def __init__(self) -> None:
        self._random = random.Random(1)

    def stop(self, facts: VoteFacts) -> set[int]:
        """Some of those that run."""
        return {t.sibling_index for t in facts.running if self._random.random() < 0.05}


def _run_restless(engine: Any, prompts: list[list[int]]) -> list[list[int]]:
    engine.scheduler._pacer.policy = Restless()
    answers = engine.run(prompts, engine.params(max_tokens=900))
    engine.scheduler._pacer.policy = engine.scheduler._pacer.chosen_policy()
    return [a.token_ids for a in answers]


def explicit_is_exact(engine: Any, prompt: list[int], seed: int | None = None) -> bool:
    """Branches behind the prompt, and a closing section, against the same as plain requests.

    With a ``seed``, all of it is drawn: each plain request has the seed that is derived for its stretch of text.
    """
    from forkjoin_scheduler.vllm_seam.threads.sampling import derived_seed

    def drawn(stretch: str) -> dict[str, Any]:
        return {} if seed is None else {"temperature": 2.0, "seed": derived_seed(seed, stretch)}

    texts = ["1:a=48*36\n", "2:b=57*18\n"]
    headers, closing = [engine.tokenizer.encode(t) for t in texts], "\ntotal"
    plain = {"forkjoin": {"enabled": False}, "max_tokens": 24}
    params = [engine.params(**plain, **drawn(f"/0.{i}:1")) for i in range(len(headers))]
    bodies = [a.token_ids for a in engine.run([[*prompt, *h] for h in headers], params)]
    joined = [
        t for h, b in zip(headers, bodies, strict=True) for t in (*h, *(b[:-1] if b[-1] == engine.eos else b))
    ]
    joined += engine.tokenizer.encode(closing)
    (behind,) = engine.run([[*prompt, *joined]], engine.params(**plain, **drawn(":1")))
    asked = {"branches": [{"text": t} for t in texts], "closing": closing, "max_tokens_per_thread": 24}
    own = {} if seed is None else {"temperature": 2.0, "seed": seed}
    (answer,) = engine.run([prompt], engine.params(forkjoin=asked, max_tokens=24 * 3, **own))
    num = len(joined) + len(behind.token_ids)
    return bool(answer.token_ids[:num] == [*joined, *behind.token_ids])


def _structured_is_exact(engine: Any, prompt: list[int], plain: list[int]) -> bool:
    """The reasoning of the plain answer, and behind it what a grammar allows: as in one go, without forks."""
    from vllm.sampling_params import StructuredOutputsParams

    regex = r"\nx[0-9]{6}y"
    reasoning = plain[: plain.index(engine.tokenizer.token_id("</think>")) + 1]

    def ask(prompt: list[int], **options: Any) -> list[int]:
        params = engine.params(structured_outputs=StructuredOutputsParams(regex=regex), **options)
        (answer,) = engine.run([prompt], params)
        return list(answer.token_ids)

    behind = ask([*prompt, *reasoning], forkjoin={"enabled": False})
    text = engine.tokenizer.decode(behind).removesuffix("<|end|>")
    return bool(re.fullmatch(regex, text) and ask(prompt) == [*reasoning, *behind])


def _paths(model: Path) -> Callable[..., dict[str, Any]]:
    """Against the reference in transformers with path embeddings; and again, losing blocks on the way."""
    from tests.engine.path_model import PathReference, take_apart

    reference = PathReference(model)

    def compare(engine: Any, prompts: list[list[int]], params: Any, answers: list[Any]) -> dict[str, Any]:
        told = [take_apart(engine, prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
        errors = [t.errors(reference.logprobs(t.context)) for t in told]
        return {
            "exact": not any(others for _, others in errors),
            "max_delta": max(off for off, _ in errors),
            "restored": _restored(engine, prompts, params, answers, (10, 20, 15)),
        }

    return compare


def _stitched(engine: Any, prompts: list[list[int]], params: Any, answers: list[Any]) -> dict[str, Any]:
    """Against the reference in transformers; and again, each family losing its blocks on the way."""
    from tests.engine.stitched_cases import compare
    from tests.engine.stitched_reference import load_model

    deltas, exact = [], True
    for prompt, answer in zip(prompts, answers, strict=True):
        context, continuation = _context(engine, prompt, answer.token_ids)
        own = [e[t].logprob for e, t in zip(answer.logprobs, answer.token_ids, strict=True)]
        right = compare(load_model(), context, continuation, own[-len(continuation) :])
        deltas.append(right.max_delta)
        exact &= right.same_tokens
    restored = _restored(engine, prompts, params, answers, (90, 150, 30))
    return {"exact": exact, "max_delta": max(deltas), "restored": restored}


def _restored(
    engine: Any, prompts: list[list[int]], params: Any, answers: list[Any], steps: tuple[int, ...]
) -> bool:
    """Whether the answers are the same when each family loses its blocks after these numbers of steps."""
    ids = [engine.add(prompt, params) for prompt in prompts]
    for num_steps in steps:
        for _ in range(num_steps):
            engine.step()
        for live in list(engine.scheduler._core.live.values()):
            engine.scheduler._eviction.evict(live)
        while engine.scheduler._eviction.evicted:
            engine.scheduler._eviction.restore_next()
    again = engine.drain()
    return [again[i].token_ids for i in ids] == [a.token_ids for a in answers]


def _context(engine: Any, prompt: list[int], token_ids: list[int]) -> tuple[list[Any], list[int]]:
    """The reference's context tree of an answer with one fork, and what the model wrote behind it."""
    from tests.engine.stitched_reference import Fork, Run

    goal, path, end, conclusion = (
        engine.tokenizer.token_id(t) for t in ("</Goal>", "<Path>", "</Path>", "<Conclusion>")
    )
    fork, join = token_ids.index(goal) + 1, token_ids.index(conclusion)
    block = token_ids[fork + 1 : join]  # behind the newline that stands before the first thread
    starts = [i for i, t in enumerate(block) if t == path]
    threads = [block[a:b] for a, b in zip(starts, [*starts[1:], len(block)], strict=True)]
    assert all(t[-2] == end for t in threads)
    context = [
        Run([*prompt, *token_ids[: fork + 1]]),
        Fork([[Run(t)] for t in threads]),
        Run(token_ids[join:]),
    ]
    return context, token_ids[join + 2 :]


if __name__ == "__main__":
    print("CASE " + json.dumps(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), *sys.argv[4:])))
