"""The scheduler's own CPU time a step, against the sequences that run; without a model.

    python -m forkjoin_bench.scheduler_time

A real ``ForkJoinScheduler`` is driven by hand: what a model would sample is made up. Families of
eight threads decode, once with nothing that waits and once with families behind them that find no
slot; vLLM's ``AsyncScheduler`` is driven with as many plain requests. Medians over steps in which
nothing begins or ends.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

COUNTS = (1, 4, 16, 64, 256, 1024)
THREADS_PER_FAMILY = 8
PROMPT_TOKENS = 64
NUM_STEPS = 30
NUM_WAITING = 200


@dataclass(frozen=True)
class Point:
    """CPU seconds of ``schedule`` and ``update_from_output`` together, the median of the steps."""

    system: str
    num_running: int
    seconds: float


@cache
def _config() -> Any:
    """The embedded model's, as an engine would have it."""
    from vllm.engine.arg_utils import EngineArgs

    from forkjoin_server.cli import EMBEDDED_MODEL

    return EngineArgs(
        model=str(EMBEDDED_MODEL),
        dtype="float32",
        enforce_eager=True,
        block_size=16,
        max_model_len=4096,
        max_num_seqs=max(COUNTS),
        max_num_batched_tokens=32_768,
    ).create_engine_config()


class Driver:
    """One scheduler and the model that it thinks it has."""

    def __init__(self, *, is_forkjoin: bool, num_slots: int, settings: dict[str, Any]) -> None:
        import torch
        from vllm.v1.core.sched.async_scheduler import AsyncScheduler
        from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
        from vllm.v1.structured_output import StructuredOutputManager

        from forkjoin_scheduler.dialect_files import load
        from forkjoin_scheduler.settings import KEY, Settings
        from forkjoin_scheduler.vllm_seam.scheduler import ForkJoinScheduler

        config = deepcopy(_config())
        limits = {"max_threads_per_fork": max(COUNTS), "max_forks": 16}
        wanted = Settings.of(load("threadweaver"), limits, **settings)
        config.additional_config = {KEY: wanted.model_dump(mode="json")}
        config.scheduler_config.max_num_seqs = num_slots
        num_blocks = 120_000
        config.cache_config.num_gpu_blocks = num_blocks
        spec = FullAttentionSpec(block_size=16, num_kv_heads=1, head_size=1, dtype=torch.float32)
        scheduler_class: Any = ForkJoinScheduler if is_forkjoin else AsyncScheduler
        self.scheduler = scheduler_class(
            config,
            KVCacheConfig(num_blocks, [], [KVCacheGroupSpec(["layer"], spec)]),
            StructuredOutputManager(config),
            block_size=16,
        )
        self._num_requests = 0
        #: What is still to be sampled of each root, the next token last.
        self._script: dict[str, list[int]] = {}

    def add(self, outline: list[int], *, num_tokens: int = 3000) -> None:
        """A request that writes ``outline``, then filler."""
        from vllm import SamplingParams
        from vllm.utils.hashing import get_hash_fn_by_name
        from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
        from vllm.v1.request import Request

        name, hash_fn = f"r{self._num_requests}", get_hash_fn_by_name("sha256")
        if not self._num_requests:
            init_none_hash(hash_fn)
        self._num_requests += 1
        prompt = [65 + (self._num_requests >> shift) % 16 for shift in range(PROMPT_TOKENS)]
        params = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
        self.scheduler.add_request(
            Request(name, prompt, params, None, block_hasher=get_request_block_hasher(16, hash_fn))
        )
        self._script[name] = outline[::-1]

    def step(self) -> tuple[float, int, int]:
        """One step; its CPU seconds, rows and tokens."""
        from vllm.v1.outputs import ModelRunnerOutput

        start = time.process_time()
        output = self.scheduler.schedule()
        seconds = time.process_time() - start
        ids = list(output.num_scheduled_tokens)
        sampled = [[self._next(i)] for i in ids]
        made = ModelRunnerOutput(ids, {i: n for n, i in enumerate(ids)}, sampled)
        start = time.process_time()
        self.scheduler.update_from_output(output, made)
        seconds += time.process_time() - start
        return seconds, len(ids), output.total_num_scheduled_tokens

    def _next(self, request_id: str) -> int:
        script = self._script.get(request_id)
        return script.pop() if script else 97

    def median(self, num_running: int) -> float:
        """Of the steps in which ``num_running`` decode and nothing else happens."""
        seconds: list[float] = []
        for _ in range(4 * NUM_STEPS):
            took, rows, tokens = self.step()
            if rows == tokens == num_running:
                seconds.append(took)
            if len(seconds) == NUM_STEPS:
                return statistics.median(seconds)
        raise RuntimeError(f"expected steps with {num_running} sequences that decode, saw {len(seconds)}")


@cache
def outline_of(width: int) -> list[int]:
    """Tokens with which a root of the embedded model forks into ``width`` threads."""
    from vllm.tokenizers import get_tokenizer

    from forkjoin_server.cli import EMBEDDED_MODEL

    lines = "".join(f"<Outline>{n}: x</Outline>\n" for n in range(1, width + 1))
    tokenizer = get_tokenizer(str(EMBEDDED_MODEL))
    ids: list[int] = tokenizer.encode(f"<Parallel>\n<Outlines>\n{lines}</Outlines>", add_special_tokens=False)
    return ids


def points(counts: tuple[int, ...]) -> Iterator[Point]:
    """The table, a row at a time."""
    systems: dict[str, dict[str, Any]] = {
        "eager": {},
        "capped": {"max_threads_running": THREADS_PER_FAMILY},
        "slack": {"slo_itl_ms": 1e6},
    }
    for count in counts:
        stock = Driver(is_forkjoin=False, num_slots=2 * max(counts), settings={})
        unused = Driver(is_forkjoin=True, num_slots=2 * max(counts), settings={"admission": "greedy"})
        for driver in (stock, unused):
            for _ in range(count):
                driver.add([])
        yield Point("stock, plain requests", count, stock.median(count))
        yield Point("fork/join, plain requests", count, unused.median(count))
        width = min(count, THREADS_PER_FAMILY)
        for name, settings in systems.items():
            driver = Driver(is_forkjoin=True, num_slots=2 * max(counts), settings=settings)
            for _ in range(count // width):
                driver.add(outline_of(width))
            yield Point(f"threads, {name}", count, driver.median(count))
        crowded = Driver(is_forkjoin=True, num_slots=count, settings={})
        for _ in range(count // width):
            crowded.add(outline_of(width))
        crowded.median(count)  # all slots are taken now
        for _ in range(NUM_WAITING):
            crowded.add(outline_of(width))
        yield Point(f"threads, eager, {NUM_WAITING} families waiting", count, crowded.median(count))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=list(COUNTS))
    parser.add_argument("--json", help="file to write the points to")
    args = parser.parse_args()
    found = []
    for point in points(tuple(args.counts)):
        found.append(point)
        print(f"{point.system:40} {point.num_running:6} {1e6 * point.seconds:12.0f} us", flush=True)
    if args.json:
        Path(args.json).write_text(json.dumps([asdict(point) for point in found], indent=2) + "\n")


if __name__ == "__main__":
    main()
