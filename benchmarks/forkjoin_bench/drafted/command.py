"""What ``forkjoin bench drafted`` compares, prints and writes.

One prompt at a time, with forks and with ``{"enabled": false}``, by each drafter; every drafter has an engine
in a process of its own. Greedy, so each answer is compared with the one without drafts. The embedded model
forks by itself; others are given branches. ``same`` drafts with the model's own weights: all its drafts are
right, and nothing is won but steps.
"""

from __future__ import annotations

import argparse
import random
import statistics
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from forkjoin_bench.arguments import check_at_least
from forkjoin_bench.drafted.measure import DEFAULT, DRAFTERS, NONE, SMALLER, Run, Setup, measure
from forkjoin_bench.drafted.prompts import PROMPTS
from forkjoin_bench.host import host_facts
from forkjoin_bench.inputs.models import make_model
from forkjoin_bench.results import add_out, write_json
from forkjoin_bench.tables import table
from forkjoin_scheduler.errors import UsageError

COLUMNS = (
    "drafter",
    "steps, sequential",
    "steps, forked",
    "gain, sequential",
    "gain, forked",
    "kept",
    "right, of its drafts",
    "right, of the family's",
    "s, sequential",
    "s, forked",
    "same answers",
    "threads",
)


def summarise(runs: list[Run], drafter: str) -> dict[str, Any]:
    """A row of the table: means over all answers, and medians of their seconds."""
    own = {forks: [r for r in runs if r.drafter == drafter and r.forks is forks] for forks in (False, True)}
    none = {forks: [r for r in runs if r.drafter == NONE and r.forks is forks] for forks in (False, True)}
    steps = {forks: statistics.mean(r.steps for r in of) for forks, of in own.items()}
    gains = {forks: statistics.mean(r.steps for r in none[forks]) / steps[forks] for forks in own}
    pairs = [pair for forks in own for pair in zip(own[forks], none[forks], strict=True)]
    return {
        "drafter": drafter,
        "steps": [steps[False], steps[True]],
        "gains": [gains[False], gains[True]],
        "kept": gains[True] / gains[False],
        "right": {s: _share(own[True], s) for s in ("drafter", "family")},
        "seconds": [statistics.median(r.seconds for r in own[forks]) for forks in (False, True)],
        "same_answers": sum(a.token_ids == b.token_ids for a, b in pairs),
        "same_threads": all(a.threads == b.threads for a, b in pairs),
        "answers": len(pairs),
        "threads": sum(r.threads for r in own[True]),
    }


def _share(runs: list[Run], source: str) -> float | None:
    """Of the tokens drafted by ``source``, those that were right; None if it drafted none."""
    drafted = sum(r.drafted.get(source, 0) for r in runs)
    return sum(r.right.get(source, 0) for r in runs) / drafted if drafted else None


def cells(row: dict[str, Any]) -> list[object]:
    """``row`` as the table shows it, by ``COLUMNS``."""
    right = ["–" if share is None else f"{share:.1%}" for share in row["right"].values()]
    return [
        row["drafter"],
        *(f"{steps:.1f}" for steps in row["steps"]),
        *(f"{gain:.2f}" for gain in row["gains"]),
        f"{row['kept']:.2f}",
        *right,
        *(f"{seconds:.2f}" for seconds in row["seconds"]),
        f"{row['same_answers']}/{row['answers']}",
        row["threads"],
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``main``."""
    parser.add_argument(
        "--model", choices=PROMPTS, default="embedded", help="Model that is measured. Default: %(default)s."
    )
    parser.add_argument(
        "--drafters",
        nargs="+",
        choices=[d for d in DRAFTERS if d != NONE],
        metavar="NAME",
        help=f"Drafters that are compared. Default: {', '.join(DEFAULT)}, and {SMALLER} with --draft-model.",
    )
    parser.add_argument(
        "--draft-model", type=Path, metavar="FOLDER", help=f"Folder with the weights of {SMALLER}."
    )
    parser.add_argument(
        "--drafts",
        type=int,
        default=4,
        metavar="N",
        help="Tokens that are drafted for a step. Default: %(default)s.",
    )
    parser.add_argument(
        "--problems",
        type=int,
        nargs="+",
        default=[2, 3, 6],
        metavar="N",
        help="Problems of one prompt. Default: 2, 3 and 6.",
    )
    parser.add_argument(
        "--rounds", type=int, default=3, metavar="N", help="Rounds of each measurement. Default: %(default)s."
    )
    parser.add_argument(
        "--seed", type=int, default=1, metavar="N", help="Seed of the prompts. Default: %(default)s."
    )
    add_out(parser)


def main(args: argparse.Namespace) -> None:
    """Measure, print, write."""
    check_at_least(
        ("--rounds", args.rounds, 1), ("--drafts", args.drafts, 1), ("--problems", min(args.problems), 1)
    )
    drafters = [NONE, *(args.drafters or (*DEFAULT, *([SMALLER] if args.draft_model else ())))]
    if SMALLER in drafters and args.draft_model is None:
        raise UsageError(f"--drafters {SMALLER}: expected --draft-model, the folder of its weights")
    for width in args.problems:
        PROMPTS[args.model](random.Random(args.seed), width)  # before an engine starts: can it be asked?
    before, runs = host_facts(), []
    setup = Setup(
        args.model,
        str(make_model(args.model, args.out).folder),
        None if args.draft_model is None else str(args.draft_model),
        args.drafts,
        tuple(args.problems),
        args.rounds,
        args.seed,
    )
    for drafter in drafters:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            runs += pool.submit(measure, drafter, setup).result()
    rows = [summarise(runs, drafter) for drafter in drafters]
    print(f"mean steps and median seconds of {rows[0]['answers'] // 2} prompts, greedy, one at a time")
    print(table(COLUMNS, map(cells, rows)))
    result = {
        "command": args.command,
        "host": before,
        "load_average_after": host_facts()["load_average"],
        "rows": rows,
        "runs": [asdict(run) for run in runs],
    }
    print(f"written to {write_json(args.out, f'drafted-{args.model}', result)}")
