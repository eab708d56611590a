"""What the scheduler itself costs a step, without a model: ``forkjoin bench scheduler``.

A scheduler is fed tokens as if a model had sampled them, while so many sequences decode: threads of
one family, threads of families of eight (under each thread policy), or plain requests, the latter on
ours and on vLLM's own.
Measured is the CPU time of ``schedule`` and ``update_from_output``, of steps in which all decode.
"""

from __future__ import annotations

import argparse
import gc
import math
import os
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from forkjoin_bench.host import host_facts
from forkjoin_bench.progress import working
from forkjoin_bench.results import add_out, write_json
from forkjoin_bench.script import Compiled, Compiler, digest
from forkjoin_bench.tables import table
from forkjoin_bench.traces import Author, Family, Fork
from forkjoin_bench.words import Words
from forkjoin_scheduler.dialects.files import load
from forkjoin_scheduler.settings import KEY, UNLIMITED, Settings
from forkjoin_server.start.configuration import EMBEDDED_MODEL
from forkjoin_server.vllm_seam.tokenizers import tokenizer_of

WIDTHS = (8, 32, 128, 512, 1024)
ONE_FAMILY, FAMILIES, CAPPED, SLACK, PLAIN, STOCK = (
    "one family",
    "families of 8",
    "families of 8, capped",
    "families of 8, slack",
    "plain requests",
    "plain, vLLM's scheduler",
)
KINDS = (ONE_FAMILY, FAMILIES, CAPPED, SLACK, PLAIN, STOCK)
#: Settings under which all run all the same, but the policy has to look.
POLICIES: dict[str, dict[str, float]] = {CAPPED: {"max_threads_running": 8}, SLACK: {"slo_itl_ms": 1e6}}
#: Steps in which all decode, less some at either end.
THREAD_TOKENS, MARGIN = 80, 10
PROMPT_TOKENS = 64
BLOCK_SIZE = 32


@dataclass(frozen=True)
class Cost:
    """The median step while ``width`` sequences decode."""

    kind: str
    width: int
    step_us: float


class Fed:
    """A scheduler, and a stand-in for the model that writes traces."""

    def __init__(self, scheduler: Any, hasher: Any) -> None:
        self._scheduler = scheduler
        self._hasher = hasher
        #: What to write from a prompt, by the prompt's digest.
        self._script: dict[str, tuple[int, ...]] = {}
        #: What each request writes, and from a prompt of how many tokens.
        self._writing: dict[str, tuple[int, tuple[int, ...]]] = {}

    def ask(self, compiled: Compiled, request_id: str | None = None) -> None:
        """Send a request for ``compiled``; without ``request_id`` it is called as the family is."""
        from vllm import SamplingParams
        from vllm.v1.request import Request

        self._script |= {c.digest: c.continuation for c in compiled.contexts}
        params = SamplingParams(temperature=0.0, max_tokens=1_000_000)
        params.update_from_generation_config({}, eos_token_id=None)
        request = Request(
            request_id=request_id or compiled.family.name,
            prompt_token_ids=compiled.prompt_ids,
            sampling_params=params,
            pooling_params=None,
            block_hasher=self._hasher,
        )
        self._scheduler.add_request(request)

    def step(self) -> tuple[int, float]:
        """One step: how many sequences it had, and the scheduler's CPU seconds."""
        began = time.thread_time()
        output = self._scheduler.schedule()
        scheduled = time.thread_time()
        sampled = self._sample(output)
        updating = time.thread_time()
        self._scheduler.update_from_output(output, sampled)
        return len(output.num_scheduled_tokens), time.thread_time() - updating + scheduled - began

    def _sample(self, output: Any) -> Any:
        return runner_output(
            {i: self._next(self._scheduler.requests[i]) for i in output.num_scheduled_tokens}
        )

    def _next(self, request: Any) -> list[int]:
        if request.num_computed_tokens < request.num_tokens:
            return []
        length = request.num_prompt_tokens
        known = self._writing.get(request.request_id)
        if known is None or known[0] != length:
            known = length, self._script[digest(request.prompt_token_ids)]
            self._writing[request.request_id] = known
        return [known[1][request.num_output_tokens]]


def runner_output(token_ids: Mapping[str, list[int]], logprobs: Any = None) -> Any:
    """What a model runner returns that has sampled ``token_ids``, by the ids of their requests.

    ``logprobs``: vLLM's ``LogprobsLists``, a row a request.
    """
    from vllm.v1.outputs import ModelRunnerOutput

    return ModelRunnerOutput(
        req_ids=list(token_ids),
        req_id_to_index={request_id: i for i, request_id in enumerate(token_ids)},
        sampled_token_ids=list(token_ids.values()),
        logprobs=logprobs,
    )


def without_model(make: Any, config: Any, num_blocks: int) -> tuple[Any, Any]:
    """A scheduler of the class ``make`` on so many KV blocks, and what hashes those of its requests.

    ``config`` is vLLM's. No model is loaded: nothing runs what the scheduler schedules.
    """
    import torch
    from vllm.utils.hashing import get_hash_fn_by_name
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.structured_output import StructuredOutputManager

    config.cache_config.num_gpu_blocks = num_blocks
    block_size = config.cache_config.block_size
    spec = FullAttentionSpec(block_size=block_size, num_kv_heads=6, head_size=32, dtype=torch.bfloat16)
    kv_cache = KVCacheConfig(num_blocks, [], [KVCacheGroupSpec(["layer"], spec)])
    hash_ = get_hash_fn_by_name(config.cache_config.prefix_caching_hash_algo)
    init_none_hash(hash_)
    scheduler = make(config, kv_cache, StructuredOutputManager(config), block_size=block_size)
    return scheduler, get_request_block_hasher(block_size, hash_)


def make_scheduler(kind: str, width: int) -> Fed:
    """One of ours, or vLLM's own, with room for ``width`` sequences."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler

    from forkjoin_scheduler.vllm_seam.scheduler import ForkJoinScheduler

    # Greedy, for all are to decode side by side.
    own: dict[str, Any] = {"admission": "greedy", **POLICIES.get(kind, {})}
    settings = Settings(dialect=load("threadweaver"), limits=UNLIMITED, **own)
    args = EngineArgs(
        model=str(EMBEDDED_MODEL),
        block_size=BLOCK_SIZE,
        max_num_seqs=max(width, 8),
        max_num_batched_tokens=1 << 17,
        max_model_len=1 << 18,
        additional_config={KEY: settings.model_dump(mode="json")},
    )
    make = AsyncScheduler if kind == STOCK else ForkJoinScheduler
    return Fed(*without_model(make, args.create_engine_config(), width * 64 + 1000))


def families_of(kind: str, width: int, words: Words) -> list[Family]:
    """Families of which ``width`` sequences decode side by side."""
    author = Author(words, f"scheduler/{kind}/{width}")
    per_family = {ONE_FAMILY: width, PLAIN: 1, STOCK: 1}.get(kind, 8)
    families = []
    for i in range(width // per_family):
        fork = author.fork([THREAD_TOKENS] * per_family)
        body: tuple[str | Fork, ...] = (author.text(4), fork, author.text(2))
        if per_family == 1:
            body = (author.text(THREAD_TOKENS),)
        families.append(Family(f"{kind}-{i}", author.text(PROMPT_TOKENS), body))
    return families


def measure(width: int) -> list[Cost]:
    """The cost of a step while ``width`` sequences decode, for each kind.

    All kinds take their steps in turn: what a step costs differs from second to second.
    """
    tokenizer = tokenizer_of(str(EMBEDDED_MODEL))
    compiler, words = Compiler(tokenizer), Words(tokenizer)
    fed: dict[str, Fed] = {}
    for kind in KINDS:
        fed[kind] = make_scheduler(kind, width)
        for family in families_of(kind, width, words):
            fed[kind].ask(compiler.compile(family))
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    gc.collect()
    gc.disable()  # its pauses are the process's, not a step's
    while unfinished := [k for k in KINDS if len(seconds[k]) < THREAD_TOKENS - MARGIN]:
        for kind in unfinished:
            num, spent = fed[kind].step()
            if num == width:
                seconds[kind].append(spent)
            assert num, f"{kind}, {width}: nothing runs after {len(seconds[kind])} steps"
    gc.enable()
    return [Cost(kind, width, 1e6 * statistics.median(seconds[kind][MARGIN:])) for kind in KINDS]


def slope(costs: list[Cost], low: int = 128) -> float:
    """The exponent of growth of the step's time with its width, from ``low`` on; 1: linear."""
    from_, to = (next(c for c in costs if c.width == w) for w in (low, max(c.width for c in costs)))
    return math.log(to.step_us / from_.step_us) / math.log(to.width / from_.width)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``main``."""
    parser.add_argument(
        "--widths",
        type=int,
        nargs="+",
        default=WIDTHS,
        metavar="N",
        help=f"Sequences that decode in a step. Default: {', '.join(map(str, WIDTHS))}.",
    )
    add_out(parser)


def main(args: argparse.Namespace) -> None:
    """Measure, print, write."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "1")
    measured = []
    with working("scheduler", len(args.widths)) as work:
        for width in args.widths:
            measured += measure(width)
            work.done()
    costs = {kind: [c for c in measured if c.kind == kind] for kind in KINDS}
    rows = [[kind, *(f"{c.step_us:.0f}" for c in own)] for kind, own in costs.items()]
    print("CPU microseconds of the scheduler a step, by sequences that decode:\n")
    print(table(["", *map(str, args.widths)], rows))
    result = {
        "host": host_facts(),
        "costs": {kind: {c.width: c.step_us for c in own} for kind, own in costs.items()},
    }
    if {128, 1024} <= set(args.widths):
        result["slopes"] = {kind: slope(own) for kind, own in costs.items()}
        print("\nexponent of growth from 128 on:", {k: round(v, 2) for k, v in result["slopes"].items()})
    print(f"written to {write_json(args.out, 'scheduler', result)}")
