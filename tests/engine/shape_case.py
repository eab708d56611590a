"""Small models of several shapes on one runner, each with one kind of join: in a process of their own.

``python -m tests.engine.shape_case v2 async gemma-reprefill mla-stitch`` prints a JSON line for each: how far
log-probabilities are off those of plain requests with the same contexts, which one forward pass computes; with
``stitch`` off those of transformers. And how far off those of families are that lost their blocks on the way.
"""

from __future__ import annotations

import json
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

#: What the threads begin with, so long that with what they write they leave a window.
HEADERS = ["1:" + "ab" * 30, "2:" + "c1" * 50, "3:x"]
CLOSING = "\nso"
NUM_OWN, NUM_AFTER = 24, 24


def start(runner: str, mode: str) -> None:
    """Before vLLM is imported."""
    from tests.engine.platform import force_async, run_engines_alone, use_v2_runner

    run_engines_alone()
    if runner == "v2":
        use_v2_runner()
    if mode == "async":
        force_async()


def main(runner: str, mode: str, names: list[str]) -> None:
    """Run each case; a line says how far its families are off, or why its engine is refused."""
    start(runner, mode)
    from forkjoin_scheduler.errors import UnsupportedEngine

    for name in names:
        try:
            found = run(*name.split("-"))
        except UnsupportedEngine as error:
            found = {"refused": str(error)}
        print("CASE " + json.dumps([name, found]), flush=True)


def run(name: str, join: str) -> dict[str, Any]:
    """Run families undisturbed, and again with losses."""
    from tests.engine.matrix_case import runner_of
    from tests.engine.shapes import SHAPES, checkpoint

    shape = SHAPES[name]
    with tempfile.TemporaryDirectory() as folder:
        model = checkpoint(shape, Path(folder))
        engine = engine_of(shape, model, join)
        found = (stitched if join == "stitch" else reprefilled)(engine, model)
    executor = engine.core.engine_core.engine_core.model_executor
    (runner_name,) = set(executor.collective_rpc(runner_of))
    return found | {
        "runner": runner_name,
        "async": engine.core.vllm_config.scheduler_config.async_scheduling,
        "returned": engine.snapshot() == engine.baseline,
        "specs": [type(g.kv_cache_spec).__name__ for g in engine.scheduler.kv_cache_config.kv_cache_groups],
        "nats": shape.nats,
    }


def engine_of(shape: Any, model: Path, join: str, **options: Any) -> Any:
    """An engine on a small model."""
    from tests.engine.harness import Engine
    from tests.engine.renamed import dialect_for
    from tests.engine.shapes import CONTEXT

    dialect = dialect_for("parathinker" if join == "stitch" else "explicit")
    given = {"max_num_seqs": 16, "max_num_batched_tokens": CONTEXT, "max_model_len": CONTEXT}
    given |= {"num_gpu_blocks_override": 400, "logits_processors": None}
    return Engine(dialect, model, **(given | shape.options | options))


def forking(engine: Any) -> Any:
    """Parameters of a family: branches after its prompt, and what follows their join."""
    asked = {
        "branches": [{"text": h} for h in HEADERS], "closing": CLOSING, "max_tokens_per_thread": NUM_OWN
    }  # fmt: skip
    limit = len(HEADERS) * NUM_OWN + NUM_AFTER
    return engine.params(forkjoin=asked, max_tokens=limit, ignore_eos=True, logprobs=0)


def reprefilled(engine: Any, model: Path) -> dict[str, Any]:
    """Branches, and what follows them, against plain requests."""
    prompts = [engine.prompt(text * 40) for text in ("qa", "x")]
    answers = engine.run(prompts, forking(engine))
    num_threads = _num_threads(engine)
    pairs = list(zip(prompts, answers, strict=True))
    deltas = [delta(engine, p, a) for p, a in pairs]
    lost = _with_loss(engine, prompts, forking(engine))
    return {
        "num_threads": num_threads,
        "max_delta": max(deltas),
        "control": min(delta(engine, p, a, forgets=True) for p, a in pairs),
        "restored": max(delta(engine, p, a) for p, a in zip(prompts, lost, strict=True)),
    }


def _num_threads(engine: Any) -> int:
    return len({i for step in engine.steps for i in step if "#" in i and "#fill" not in i})


def _with_loss(
    engine: Any, prompts: list[Any], params: Any, steps: tuple[int, ...] = (6, 12, 20)
) -> list[Any]:
    """The answers when each family loses its blocks after these numbers of steps more."""
    ids = [engine.add(prompt, params) for prompt in prompts]
    lose_blocks(engine, steps)
    answers = engine.drain()
    return [answers[i] for i in ids]


def lose_blocks(engine: Any, steps: tuple[int, ...] = (6, 12, 20)) -> None:
    """Let each family lose its blocks after these numbers of steps more."""
    for num_steps in steps:
        for _ in range(num_steps):
            engine.step()
        assert engine.scheduler._core.live
        for live in list(engine.scheduler._core.live.values()):
            engine.scheduler._eviction.evict(live)
        while engine.scheduler._eviction.evicted:
            engine.scheduler._eviction.restore_next()


def delta(engine: Any, prompt: list[int], answer: Any, *, forgets: bool = False) -> float:
    """How far logprobs of tokens that the model chose are off those of one plain pass over their context.

    ``forgets``: the control, in which what follows the join sees no first thread.
    """
    ids = answer.token_ids
    own = [e[t].logprob for e, t in zip(answer.logprobs, ids, strict=True)]
    at, off = 0, []
    for header in HEADERS:
        start, end = (
            at + len(engine.tokenizer.encode(header)),
            at + len(engine.tokenizer.encode(header)) + NUM_OWN,
        )
        if not forgets:
            off.append(_off(engine, [*prompt, *ids[at:start]], ids[start:end], own[start:end]))
        at = end
    after = at + len(engine.tokenizer.encode(CLOSING))
    assert len(ids) == after + NUM_AFTER
    first = len(engine.tokenizer.encode(HEADERS[0])) + NUM_OWN if forgets else 0
    off_after = _off(engine, [*prompt, *ids[first:after]], ids[after:], own[after:])
    return max([*off, off_after])


def _off(engine: Any, context: list[int], tokens: list[int], own: list[float]) -> float:
    given = plain_logprobs(engine, [*context, *tokens])[-len(tokens) :]
    return max(abs(g[t].logprob - o) for g, t, o in zip(given, tokens, own, strict=True))


def plain_logprobs(engine: Any, context: list[int]) -> list[Any]:
    """Of each token of ``context``, by a plain request that prefills it without looking into the prefix cache."""
    return _plain_logprobs(engine, engine.lora, tuple(context))


@cache
def _plain_logprobs(engine: Any, lora: Any, context: tuple[int, ...]) -> list[Any]:
    # under Triton's interpreter one takes seconds, and families that lost blocks write the same again
    params = engine.params(forkjoin={"enabled": False}, max_tokens=1, prompt_logprobs=0)
    return engine.prompt_logprobs(engine.add(list(context), params))


def stitching(engine: Any) -> Any:
    """Parameters of a family: ParaThinker's paths after its prompt, and their summary."""
    asked = {"max_tokens_per_thread": 20}
    return engine.params(forkjoin=asked, max_tokens=84, ignore_eos=True, logprobs=0)


def stitched(engine: Any, model: Path) -> dict[str, Any]:
    """ParaThinker's paths and summary against transformers."""
    from tests.engine.path_model import take_apart
    from tests.engine.shape_reference import ShapeReference

    prompts = [engine.prompt(text * 20) for text in ("qa", "x")]
    params = stitching(engine)
    reference = ShapeReference(model, engine)

    def off(answers: list[Any], *, forgets: bool = False) -> list[float]:
        told = [take_apart(engine, p, a) for p, a in zip(prompts, answers, strict=True)]
        return [t.errors(reference.logprobs(t.context, positions_wrong=forgets))[0] for t in told]

    answers = engine.run(prompts, params)
    num_threads = _num_threads(engine)
    return {
        "num_threads": num_threads,
        "max_delta": max(off(answers)),
        "control": min(off(answers, forgets=True)),
        "restored": max(off(_with_loss(engine, prompts, params, (6, 8, 5)))),
    }


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
