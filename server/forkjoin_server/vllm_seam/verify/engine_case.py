"""One engine: an answer that forks and joins, and plain requests that read the same tokens.

``python -m forkjoin_server.vllm_seam.verify.engine_case OUT FLAGS…`` with the flags of ``forkjoin serve``.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from forkjoin_scheduler.dialects.patterns import fill
from forkjoin_scheduler.settings import KEY
from forkjoin_server.verify import transcript
from forkjoin_server.verify.transcript import AFTER_TOKENS, THREAD_TOKENS, WIDTH, Transcript


def main(out: Path, argv: list[str]) -> None:
    """Write what was seen to ``out``. Raises what the engine raises where it does not start."""
    engine, encode = _start(argv)
    config = engine.vllm_config
    prompt = transcript.ending_in_a_block(encode(transcript.PROMPT), config.cache_config.block_size)
    headers = [encode(fill(transcript.HEADER, n=str(n))) for n in range(1, WIDTH + 1)]
    join_ids = encode(transcript.JOIN_TEXT)
    num = WIDTH * THREAD_TOKENS + AFTER_TOKENS  # what is injected does not count
    (answer,) = _run(engine, [prompt], {"max_tokens_per_thread": THREAD_TOKENS}, max_tokens=num, logprobs=0)
    chosen = answer.outputs[0]
    own = [e[t].logprob for e, t in zip(chosen.logprobs, chosen.token_ids, strict=True)]
    parts = transcript.take_apart(chosen.token_ids, headers, join_ids)
    first, _, third = parts.threads
    contexts = [
        *([*prompt, *thread] for thread in parts.threads),
        [*prompt, *chosen.token_ids],
        # a control: without the second thread, what follows must have other log-probabilities
        [*prompt, *first, *third, *parts.after],
    ]
    read = _run(engine, contexts, {"enabled": False}, max_tokens=1, prompt_logprobs=1)
    said = [_said(r.prompt_token_ids, r.prompt_logprobs) for r in read]
    num_after = len(parts.after) - len(join_ids)
    seen = {
        "model": config.model_config.model,
        "revision": config.model_config.revision,
        "trust_remote_code": config.model_config.trust_remote_code,
        "dtype": str(config.model_config.dtype).removeprefix("torch."),
        "cache_dtype": config.cache_config.cache_dtype,
        "block_size": config.cache_config.block_size,
        "async_scheduling": config.scheduler_config.async_scheduling,
        "cudagraph_mode": str(config.compilation_config.cudagraph_mode),
        "prompt": prompt,
        "threads": parts.threads,
        "after": parts.after,
        "num_join": len(join_ids),
        "num_header": [len(h) for h in headers],
        "own": _own(parts, headers, join_ids, own),
        "plain": [
            *(s[len(prompt) + len(h) :] for s, h in zip(said, headers, strict=False)),
            said[-2][-num_after:],
        ],
        "thread_unseen": said[-1][-num_after:],
    }
    out.write_text(json.dumps(seen))


def _start(argv: list[str]) -> tuple[Any, Any]:
    from forkjoin_server.start.configuration import resolve

    sys.argv = ["forkjoin", "serve", *argv]
    args = resolve(argv, os.environ).args
    args.model = args.model_tag or args.model
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    from forkjoin_scheduler.vllm_seam.tokenizer import EngineTokenizer

    engine = LLMEngine.from_engine_args(EngineArgs.from_cli_args(args))
    return engine, EngineTokenizer(engine.get_tokenizer()).encode


def _run(engine: Any, prompts: list[list[int]], forkjoin: dict[str, Any], **options: Any) -> list[Any]:
    """The outputs of requests that run together, greedily."""
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    for i, prompt in enumerate(prompts):
        params = SamplingParams(temperature=0.0, ignore_eos=True, extra_args={KEY: forkjoin}, **options)
        engine.add_request(str(i), TokensPrompt(prompt_token_ids=prompt), params)
    done: dict[str, Any] = {}
    while engine.has_unfinished_requests():
        done |= {output.request_id: output for output in engine.step() if output.finished}
    return [done[str(i)] for i in range(len(prompts))]


def _said(token_ids: list[int], logprobs: list[Any]) -> list[tuple[float, float]]:
    """Of each token of a plain request's prompt: its log-probability, and that of the best one."""
    told = [(0.0, 0.0)]  # nothing predicts the first
    for token, entry in list(zip(token_ids, logprobs, strict=True))[1:]:
        told.append((entry[token].logprob, max(e.logprob for e in entry.values())))
    return told


def _own(
    parts: Transcript, headers: list[list[int]], join_ids: list[int], own: list[float]
) -> list[list[float]]:
    """The log-probabilities of what each thread wrote, and of what follows the join."""
    found, at = [], 0
    for thread, header in zip(parts.threads, headers, strict=True):
        found.append(own[at + len(header) : at + len(thread)])
        at += len(thread)
    return [*found, own[at + len(join_ids) :]]


if __name__ == "__main__":
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    main(Path(sys.argv[1]), sys.argv[2:])
