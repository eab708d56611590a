"""What it takes to load a prompt's KV and to compute it again, in seconds: ``forkjoin bench loads``.

A real engine with the embedded model and vLLM's ``OffloadingConnector`` answers each prompt with one token.
Its prefix cache is empty. In one run of a pair the connector has the KV of all full blocks, in the other it
has none. The two runs follow each other, and their order alternates: so other load on the machine affects
both, and ratios are of pairs. The copies are those of ``host_offloading.py``, within the host's memory.
"""

from __future__ import annotations

import argparse
import random
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from forkjoin_bench.comparison.measures import spread
from forkjoin_bench.host import host_facts
from forkjoin_bench.progress import working
from forkjoin_bench.results import add_out, write_json
from forkjoin_bench.tables import cell, table
from forkjoin_bench.vllm_seam.engine import sampling, set_environment, start_engine
from forkjoin_scheduler.errors import UsageError
from forkjoin_scheduler.settings import KEY
from forkjoin_server.start.configuration import EMBEDDED_MODEL

if TYPE_CHECKING:
    from forkjoin_bench.vllm_seam.engine import LLM

BLOCK_SIZE, MAX_MODEL_LEN, STEP_TOKENS = 32, 4096, 2048
COLUMNS = ("prompt tokens", "computed, ms", "loaded, ms", "loaded, of computed")


@dataclass(frozen=True)
class Pair:
    """One prompt, from its arrival to its token, and of how many tokens the KV was loaded."""

    tokens: int
    computed_s: float
    loaded_s: float
    loaded_tokens: int

    @property
    def ratio(self) -> float:
        """Seconds with the load, of those without."""
        return self.loaded_s / self.computed_s


def measure(lengths: list[int], rounds: int) -> list[Pair]:
    """So many pairs of each length; those of the first round, which warms up, are left out."""
    bench, pairs = _Bench(), []
    with working("loads", (rounds + 1) * len(lengths)) as work:
        for round_ in range(rounds + 1):
            for length in lengths:
                pair = bench.pair(length, loads_first=bool(round_ % 2))
                pairs += [pair] if round_ else []
                work.done()
    return pairs


class _Bench:
    """An engine with a connector."""

    def __init__(self) -> None:
        set_environment()
        from forkjoin_bench.vllm_seam.offloading import offloading

        self._llm: LLM = start_engine(
            str(EMBEDDED_MODEL),
            block_size=BLOCK_SIZE,
            max_model_len=MAX_MODEL_LEN,
            max_num_batched_tokens=STEP_TOKENS,
            num_gpu_blocks_override=2 * MAX_MODEL_LEN // BLOCK_SIZE,
            kv_transfer_config=offloading(1, 1 << 28),
        )
        self._engine: Any = self._llm.llm_engine
        core: Any = self._engine.engine_core
        self._connector = core.engine_core.scheduler.connector
        self._chance = random.Random(0)

    def pair(self, length: int, *, loads_first: bool) -> Pair:
        """A prompt of ``length`` tokens, computed and loaded."""
        size = self._engine.model_config.get_vocab_size()
        prompt = [self._chance.randrange(size) for _ in range(length)]
        self._run(prompt, has_stored=False)  # the connector has it then
        if loads_first:
            loaded, num_loaded = self._run(prompt, has_stored=True)
            computed, _ = self._run(prompt, has_stored=False)
        else:
            computed, _ = self._run(prompt, has_stored=False)
            loaded, num_loaded = self._run(prompt, has_stored=True)
        return Pair(length, computed, loaded, num_loaded)

    def _run(self, prompt: list[int], *, has_stored: bool) -> tuple[float, int]:
        """Seconds to the first token, and how many tokens had KV. ``has_stored``: the connector has it."""
        if not self._engine.reset_prefix_cache(reset_connector=not has_stored):
            raise RuntimeError("expected an idle engine, whose prefix cache can be dropped")
        prompts: Any = [{"prompt_token_ids": prompt}]
        params = sampling(temperature=0.0, max_tokens=1, extra_args={KEY: {"enabled": False}})
        began = time.perf_counter()
        (output,) = self._llm.generate(prompts, params, use_tqdm=False)
        seconds = time.perf_counter() - began
        while self._connector.has_pending_push_work():
            self._engine.step()  # what is still stored
        return seconds, output.num_cached_tokens or 0


def cells(length: int, pairs: list[Pair]) -> list[object]:
    """The pairs of one length as the table shows them, by ``COLUMNS``."""
    computed = spread([1000 * pair.computed_s for pair in pairs])
    loaded = spread([1000 * pair.loaded_s for pair in pairs])
    ratios = spread([pair.ratio for pair in pairs])
    return [length, cell(computed, 1), cell(loaded, 1), cell(ratios)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``main``."""
    parser.add_argument(
        "--tokens",
        type=int,
        nargs="+",
        default=[256, 1024, 4000],
        metavar="N",
        help="Lengths of prompts. Default: 256 1024 4000.",
    )
    parser.add_argument(
        "--rounds", type=int, default=20, metavar="N", help="Pairs of each length. Default: %(default)s."
    )
    add_out(parser)


def main(args: argparse.Namespace) -> None:
    """Measure, print, write."""
    if args.rounds < 1:
        raise UsageError(f"--rounds: expected at least 1, got {args.rounds}")
    if wrong := [n for n in args.tokens if not BLOCK_SIZE < n < MAX_MODEL_LEN]:
        raise UsageError(
            f"--tokens: expected more than a block, {BLOCK_SIZE}, and less than {MAX_MODEL_LEN}, "
            f"got {wrong[0]}"
        )
    before = host_facts()
    pairs = measure(args.tokens, args.rounds)
    if missed := [pair for pair in pairs if not pair.loaded_tokens]:
        raise RuntimeError(f"expected each pair to load, {len(missed)} did not")
    by_length = {n: [pair for pair in pairs if pair.tokens == n] for n in args.tokens}
    print(table(COLUMNS, [cells(n, of) for n, of in by_length.items()]))
    result = {
        "command": args.command,
        "host": before,
        "pairs": [asdict(pair) | {"ratio": pair.ratio} for pair in pairs],
    }
    print(f"written to {write_json(args.out, 'loads', result)}")
