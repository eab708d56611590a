"""What offloading spares families that lose their KV: ``forkjoin bench offloaded``.

The same families run on ample KV, and twice on too few blocks for all of them: parked parents and threads
lose theirs to others, and go on later. Without a connector what they had is recomputed. vLLM's
``OffloadingConnector`` has stored it, and loads it. The scheduler is fed tokens as if a model had sampled
them: so all is counted, and the same on every machine.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from forkjoin_bench.arguments import check_at_least
from forkjoin_bench.host import host_facts
from forkjoin_bench.inputs.script import Compiler
from forkjoin_bench.inputs.traces import Author, Family
from forkjoin_bench.inputs.words import Words
from forkjoin_bench.results import add_out, write_json
from forkjoin_bench.tables import table
from forkjoin_scheduler.dialects.files import load
from forkjoin_scheduler.settings import KEY, UNLIMITED, Settings
from forkjoin_server.start.configuration import EMBEDDED_MODEL
from forkjoin_server.vllm_seam.tokenizers import tokenizer_of

if TYPE_CHECKING:
    from forkjoin_bench.vllm_seam.offloading import OffloadedFed

AMPLE, RECOMPUTED, OFFLOADED = "ample KV", "recomputed", "offloaded"
BLOCK_SIZE, MAX_MODEL_LEN = 32, 4096
PROMPT_TOKENS, THREADS, THREAD_TOKENS = 512, 4, 128
COLUMNS = (
    "KV that is lost",
    "steps",
    "tokens computed",
    "recomputed",
    "loaded",
    "recomputed, of those without",
)


@dataclass(frozen=True)
class Count:
    """One run. ``loaded``: tokens whose KV the connector gave."""

    case: str
    steps: int
    computed: int
    loaded: int


def measure(case: str, num_families: int, num_blocks: int, transfer_steps: int) -> Count:
    """Run all families to their ends."""
    tokenizer = tokenizer_of(str(EMBEDDED_MODEL))
    compiler, author = Compiler(tokenizer), Author(Words(tokenizer), "offloaded")
    fed = _scheduler(case, num_blocks, transfer_steps)
    for i in range(num_families):
        body = (author.text(16), author.fork([THREAD_TOKENS] * THREADS), author.text(16))
        fed.ask(compiler.compile(Family(f"r{i}", author.text(PROMPT_TOKENS), body)))
    steps, computed = fed.run()
    return Count(case, steps, computed, fed.num_loaded_tokens)


def _scheduler(case: str, num_blocks: int, transfer_steps: int) -> OffloadedFed:
    from forkjoin_bench.vllm_seam.offloading import offloaded_fed

    # Greedy, for admission by families keeps most of the pressure away.
    settings = Settings(dialect=load("threadweaver"), limits=UNLIMITED, admission="greedy")
    return offloaded_fed(
        100_000 if case == AMPLE else num_blocks,
        transfer_steps if case == OFFLOADED else 0,
        model=str(EMBEDDED_MODEL),
        block_size=BLOCK_SIZE,
        max_num_seqs=64,
        max_num_batched_tokens=2048,
        max_model_len=MAX_MODEL_LEN,
        additional_config={KEY: settings.model_dump(mode="json")},
    )


def _with_recomputed(counts: dict[str, Count]) -> list[dict[str, Any]]:
    return [asdict(c) | {"recomputed": recomputed(c, counts)} for c in counts.values()]


def cells(count: Count, counts: dict[str, Count]) -> list[object]:
    """``count`` as the table shows it, by ``COLUMNS``."""
    again = recomputed(count, counts)
    without = recomputed(counts[RECOMPUTED], counts)
    share = f"{again / without:.2f}" if without and count.case != AMPLE else "–"
    return [count.case, count.steps, count.computed, again, count.loaded, share]


def total(case: str, counts: Iterable[Count]) -> Count:
    """The sum of several runs of ``case``."""
    rows = [(c.steps, c.computed, c.loaded) for c in counts]
    return Count(case, *map(sum, zip(*rows, strict=True)))


def recomputed(count: Count, counts: dict[str, Count]) -> int:
    """Tokens that were computed again."""
    return count.computed - counts[AMPLE].computed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``main``."""
    parser.add_argument(
        "--families",
        type=int,
        nargs="+",
        default=[16],
        metavar="N",
        help="Requests that fork. Default: 16.",
    )
    parser.add_argument(
        "--blocks",
        type=int,
        nargs="+",
        default=[160],
        metavar="N",
        help=f"KV blocks of {BLOCK_SIZE} tokens that they share, at least {MAX_MODEL_LEN // BLOCK_SIZE + 2}. "
        "Of several numbers of families or blocks each pair is run, and the table sums up. Default: 160.",
    )
    parser.add_argument(
        "--transfer-steps",
        type=int,
        default=2,
        metavar="N",
        help="Steps that a copy of the connector takes. Default: %(default)s.",
    )
    add_out(parser)


def main(args: argparse.Namespace) -> None:
    """Count, print, write."""
    least = MAX_MODEL_LEN // BLOCK_SIZE + 2
    check_at_least(
        ("--families", min(args.families), 1),
        ("--blocks", min(args.blocks), least),
        ("--transfer-steps", args.transfer_steps, 1),
    )
    before = host_facts()
    cases = (AMPLE, RECOMPUTED, OFFLOADED)
    pairs = list(product(args.families, args.blocks))
    runs = [{case: measure(case, *pair, args.transfer_steps) for case in cases} for pair in pairs]
    counts = {case: total(case, (run[case] for run in runs)) for case in cases}
    families, blocks = (", ".join(map(str, given)) for given in (args.families, args.blocks))
    print(f"{families} families of {THREADS} threads on {blocks} KV blocks")
    print(table(COLUMNS, [cells(count, counts) for count in counts.values()]))
    ratios = [run[OFFLOADED].steps / run[RECOMPUTED].steps for run in runs]
    print(
        f"steps offloaded, of those recomputed: {min(ratios):.2f} to {max(ratios):.2f} in {len(runs)} run(s)"
    )
    result: dict[str, Any] = {
        "command": args.command,
        "host": before,
        "runs": [
            {"families": pair[0], "blocks": pair[1], "counts": _with_recomputed(run)}
            for pair, run in zip(pairs, runs, strict=True)
        ],
        "counts": _with_recomputed(counts),
    }
    print(f"written to {write_json(args.out, 'offloaded', result)}")
