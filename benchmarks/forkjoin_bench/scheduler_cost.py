"""What the scheduler itself costs a step, without a model: ``forkjoin bench scheduler``.

A scheduler is fed tokens as if a model had sampled them, while so many sequences decode: threads of
one family, threads of families of eight (under each thread policy), or plain requests, the latter on
ours and on vLLM's own.
Measured is the CPU time of ``schedule`` and ``update_from_output`` in steps in which all decode, and how many
functions these call, which is the same on every machine.
"""

from __future__ import annotations

import argparse
import gc
import math
import os
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from forkjoin_bench.host import host_facts
from forkjoin_bench.inputs.script import Compiler
from forkjoin_bench.inputs.traces import Author, Family, Fork
from forkjoin_bench.inputs.words import Words
from forkjoin_bench.progress import working
from forkjoin_bench.results import add_out, write_json
from forkjoin_bench.tables import table
from forkjoin_scheduler.dialects.files import load
from forkjoin_scheduler.errors import UsageError
from forkjoin_scheduler.settings import KEY, UNLIMITED, Settings
from forkjoin_server.start.configuration import EMBEDDED_MODEL
from forkjoin_server.vllm_seam.tokenizers import tokenizer_of

if TYPE_CHECKING:
    from forkjoin_bench.vllm_seam.fed import Fed

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
#: Of those at the end, so many tell the calls.
COUNTED_STEPS = 5
PROMPT_TOKENS = 64
BLOCK_SIZE = 32


@dataclass(frozen=True)
class Cost:
    """The median step while ``width`` sequences decode. ``calls``: of functions, in a step."""

    kind: str
    width: int
    step_us: float
    calls: float


def make_scheduler(kind: str, width: int) -> Fed:
    """One of ours, or vLLM's own, with room for ``width`` sequences."""
    from forkjoin_bench.vllm_seam.fed import fed

    # Greedy, for all are to decode side by side.
    own: dict[str, Any] = {"admission": "greedy", **POLICIES.get(kind, {})}
    settings = Settings(dialect=load("threadweaver"), limits=UNLIMITED, **own)
    return fed(
        width * 64 + 1000,
        stock=kind == STOCK,
        model=str(EMBEDDED_MODEL),
        block_size=BLOCK_SIZE,
        max_num_seqs=max(width, 8),
        max_num_batched_tokens=1 << 17,
        max_model_len=1 << 18,
        additional_config={KEY: settings.model_dump(mode="json")},
    )


def families_of(kind: str, width: int, words: Words) -> list[Family]:
    """Families of which ``width`` sequences decode side by side."""
    author = Author(words, f"scheduler/{kind}/{width}")
    per_family = {ONE_FAMILY: width, PLAIN: 1, STOCK: 1}.get(kind, min(width, 8))
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
    calls = {kind: statistics.median(fed[kind].count() for _ in range(COUNTED_STEPS)) for kind in KINDS}
    return [Cost(kind, width, 1e6 * statistics.median(seconds[kind][MARGIN:]), calls[kind]) for kind in KINDS]


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
        help="Sequences that decode in a step, above 8 a multiple of 8. Default: "
        f"{', '.join(map(str, WIDTHS))}.",
    )
    add_out(parser)


def main(args: argparse.Namespace) -> None:
    """Measure, print, write."""
    if wrong := [width for width in args.widths if width < 1 or (width > 8 and width % 8)]:
        raise UsageError(f"--widths: expected 1 to 8, or whole families of 8, got {wrong[0]}")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "1")
    measured = []
    with working("scheduler", len(args.widths)) as work:
        for width in args.widths:
            measured += measure(width)
            work.done()
    costs = {kind: [c for c in measured if c.kind == kind] for kind in KINDS}
    heads = ["", *map(str, args.widths)]
    print("CPU microseconds of the scheduler a step, by sequences that decode:\n")
    print(table(heads, [[kind, *(f"{c.step_us:.0f}" for c in own)] for kind, own in costs.items()]))
    print("\nfunctions that it calls in a step:\n")
    print(table(heads, [[kind, *(f"{c.calls:.0f}" for c in own)] for kind, own in costs.items()]))
    result = {
        "host": host_facts(),
        "costs": {kind: {c.width: c.step_us for c in own} for kind, own in costs.items()},
        "calls": {kind: {c.width: c.calls for c in own} for kind, own in costs.items()},
    }
    if {128, 1024} <= set(args.widths):
        result["slopes"] = {kind: slope(own) for kind, own in costs.items()}
        print("\nexponent of growth from 128 on:", {k: round(v, 2) for k, v in result["slopes"].items()})
    print(f"written to {write_json(args.out, 'scheduler', result)}")
