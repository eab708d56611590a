"""The embedded model, unforced: fork/join against sequential decoding (``forkjoin bench abacus``).

One prompt at a time: k problems that do not wait, for k = 1, 2, 3, 6, and levels of problems that wait for
those of the level before (``2 + 2`` forks twice). Each round asks a new prompt of each kind twice, with
fork/join and with ``{"enabled": false}``, the order alternating; the prefix cache is emptied before every
answer, so that none profits from the one before it. The ratio is of the two answers to one prompt. Greedy.
Prints a table; writes it with every single answer as JSON. Needs a checkout, for the prompts come from the
training task.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from forkjoin_bench.comparison.measures import spread
from forkjoin_bench.host import host_facts
from forkjoin_bench.progress import working
from forkjoin_bench.results import add_out, write_json
from forkjoin_bench.tables import cell, table
from forkjoin_bench.vllm_seam.engine import sampling, start_engine
from forkjoin_scheduler.errors import UsageError
from forkjoin_scheduler.publish.events import Event, FamilyEnded
from forkjoin_scheduler.publish.feed import FEEDS
from forkjoin_server.start.configuration import EMBEDDED_MODEL
from training.prompts import make_chain
from training.task import LETTERS, Worksheet, check

if TYPE_CHECKING:
    from forkjoin_bench.vllm_seam.engine import LLM

WIDTHS = (1, 2, 3, 6)
#: How many problems each level has, where the later levels wait for the ones before.
CHAINS = ((2, 2), (2, 2, 2))
MAX_TOKENS = 3000
COLUMNS = (
    "problems",
    "fork/join s",
    "sequential s",
    "sequential / fork",
    "tokens, fork",
    "tokens, seq.",
    "critical path",
    "right, fork",
    "right, seq.",
)


@dataclass(frozen=True)
class Run:
    """One answer: ``critical_path`` is the tokens on its longest path, all of them if it did not fork."""

    problems: str
    round: int
    forks: bool
    seconds: float
    tokens: int
    critical_path: int
    threads: int
    right: bool


class Bench:
    """An engine, and what it said last of a request that forked."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm
        self._ended: FamilyEnded | None = None
        FEEDS.observers.append(self._observe)

    def _observe(self, event: Event, _: int | None) -> None:
        if isinstance(event, FamilyEnded):
            self._ended = event

    def run(self, problems: str, sheet: Worksheet, round_: int, *, forks: bool) -> Run:
        """Answer ``sheet``, of so many ``problems``, and measure."""
        params = sampling(temperature=0.0, max_tokens=MAX_TOKENS, extra_args={"forkjoin": {"enabled": forks}})
        self._llm.reset_prefix_cache()
        self._ended = None
        messages: Any = [{"role": "user", "content": sheet.prompt}]
        start = time.perf_counter()
        (output,) = self._llm.chat(messages, params, use_tqdm=False)
        seconds = time.perf_counter() - start
        answer = output.outputs[0]
        length = len(answer.token_ids)
        family = self._ended
        return Run(
            problems,
            round_,
            forks,
            seconds,
            length if family is None else family.total_tokens,
            length if family is None else family.critical_path_tokens,
            0 if family is None else family.num_threads,
            check(sheet, answer.text).right,
        )


def named(levels: Sequence[int]) -> str:
    """How the table names a prompt of so many problems a level, such as ``2 + 2``."""
    return " + ".join(map(str, levels))


def measure(bench: Bench, kinds: Sequence[Sequence[int]], rounds: int, seed: int) -> list[Run]:
    """The runs of all rounds; round 0, which warms up, is left out."""
    rng = random.Random(seed)
    runs = []
    with working("abacus", (rounds + 1) * len(kinds) * 2) as work:
        for round_ in range(rounds + 1):
            for levels in kinds:
                sheet = make_chain(rng, levels=levels, held_out=True)
                order = (True, False) if round_ % 2 else (False, True)
                for forks in order:
                    runs.append(bench.run(named(levels), sheet, round_, forks=forks))
                    work.say(str(runs[-1]))
                    work.done()
    return [run for run in runs if run.round]


def summarise(runs: list[Run], problems: str) -> dict[str, Any]:
    """A row of the table: medians over the rounds, and (least, greatest)."""
    of_kind = sorted((r for r in runs if r.problems == problems), key=lambda r: r.round)
    forked = [r for r in of_kind if r.forks]
    sequential = [r for r in of_kind if not r.forks]
    ratios = [s.seconds / f.seconds for f, s in zip(forked, sequential, strict=True)]
    return {
        "problems": problems,
        "fork_s": spread([r.seconds for r in forked]),
        "sequential_s": spread([r.seconds for r in sequential]),
        "sequential_over_fork": spread(ratios),
        "fork_tokens": statistics.median(r.tokens for r in forked),
        "sequential_tokens": statistics.median(r.tokens for r in sequential),
        "critical_path": statistics.median(r.critical_path for r in forked),
        "threads": statistics.median(r.threads for r in forked),
        "fork_right": sum(r.right for r in forked),
        "sequential_right": sum(r.right for r in sequential),
        "rounds": len(forked),
    }


def cells(row: dict[str, Any]) -> list[object]:
    """``row`` as the table shows it, by ``COLUMNS``."""
    return [
        row["problems"],
        *(cell(row[name]) for name in ("fork_s", "sequential_s", "sequential_over_fork")),
        *(f"{row[name]:g}" for name in ("fork_tokens", "sequential_tokens", "critical_path")),
        *(f"{row[name]}/{row['rounds']}" for name in ("fork_right", "sequential_right")),
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``main``."""
    parser.add_argument(
        "--problems",
        type=int,
        default=6,
        choices=range(1, len(LETTERS) + 1),
        metavar="N",
        help=f"Most problems of one prompt that do not wait, 1 to {len(LETTERS)}. Default: %(default)s.",
    )
    parser.add_argument(
        "--rounds", type=int, default=5, metavar="N", help="Prompts that are measured. Default: %(default)s."
    )
    parser.add_argument(
        "--seed", type=int, default=1, metavar="N", help="Seed of the prompts. Default: %(default)s."
    )
    add_out(parser)


def main(args: argparse.Namespace) -> None:
    """Measure, print, write."""
    if args.rounds < 1:
        raise UsageError(f"--rounds: expected at least 1, got {args.rounds}")
    widths = sorted({w for w in WIDTHS if w < args.problems} | {args.problems})
    bench = Bench(start_engine(str(EMBEDDED_MODEL)))
    before = host_facts()
    kinds = [*((width,) for width in widths), *CHAINS]
    runs = measure(bench, kinds, args.rounds, args.seed)
    rows = [summarise(runs, named(levels)) for levels in kinds]
    print(f"median (least-greatest) of {args.rounds} prompts each, greedy, one at a time")
    print(table(COLUMNS, map(cells, rows)))
    for name, fact in before.items():
        print(f"{name}: {fact}")
    result = {
        "arguments": {"problems": args.problems, "rounds": args.rounds, "seed": args.seed},
        "host": before,
        "load_average_after": host_facts()["load_average"],
        "rows": rows,
        "runs": [asdict(run) for run in runs],
    }
    print(f"written to {write_json(args.out, 'abacus', result)}")
