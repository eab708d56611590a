"""Speculative decoding and forks: neither, each, and both (``forkjoin bench drafted``).

The embedded model answers worksheets, one at a time, with forks and with ``{"enabled": false}``, by each
drafter; every drafter has an engine in a process of its own. Greedy, so each answer is compared with the one
without drafts. ``same`` drafts with the model's own weights: all its drafts are right, and nothing is won but
steps. Prints a table; writes it with every single answer as JSON. Needs a checkout, for the prompts come
from the training task.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from forkjoin_bench.abacus import MAX_TOKENS, start_engine
from forkjoin_bench.host import host_facts
from forkjoin_bench.results import write_json
from forkjoin_bench.tables import table
from forkjoin_scheduler.errors import UsageError
from forkjoin_scheduler.feed import FEEDS
from forkjoin_server.configuration import EMBEDDED_MODEL
from training.task import make_worksheet

NONE = "none"
#: What else each drafter is served with.
DRAFTERS: dict[str, dict[str, Any]] = {
    NONE: {},
    "same": {"method": "draft_model"},
    "ngram": {"method": "ngram", "prompt_lookup_min": 3, "prompt_lookup_max": 5},
    "ngram+family": {"method": "ngram", "prompt_lookup_min": 3, "prompt_lookup_max": 5},
}
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


@dataclass(frozen=True)
class Run:
    """One answer."""

    drafter: str
    problems: int
    forks: bool
    steps: int
    seconds: float
    threads: int
    token_ids: tuple[int, ...]
    #: Tokens drafted and those of them that were right, by source; of requests that forked.
    drafted: dict[str, int]
    right: dict[str, int]


def measure(drafter: str, num_drafts: int, widths: list[int], rounds: int, seed: int) -> list[Run]:
    """All answers by one drafter; those of the first round, which warms up, are left out."""
    argv = ["--dtype", "float32"]  # in which the answers are equal, whatever is computed beside them
    if more := DRAFTERS[drafter]:
        model = {"model": str(EMBEDDED_MODEL)} if more["method"] == "draft_model" else {}
        argv += ["--speculative-config", json.dumps(more | model | {"num_speculative_tokens": num_drafts})]
    if drafter.endswith("+family"):
        argv += ["--draft-from", "family"]
    llm = start_engine(argv)
    steps = _count_steps(llm)
    told: list[dict[str, Any]] = []
    FEEDS.observers.append(told.append)
    rng, runs = random.Random(seed), []
    for round_ in range(rounds + 1):
        for width in widths:
            sheet = make_worksheet(rng, num_long=width, held_out=True)
            for forks in (True, False) if round_ % 2 else (False, True):
                told.clear()
                run = _run(llm, steps, drafter, sheet, told, forks=forks)
                print(run, file=sys.stderr)
                runs += [run] if round_ else []
    return runs


def _count_steps(llm: Any) -> list[int]:
    """Where each step of the scheduler that runs anything is noted, from now on."""
    scheduler = llm.llm_engine.engine_core.engine_core.scheduler
    schedule, steps = scheduler.schedule, []

    def counted(*args: Any, **kwargs: Any) -> Any:
        output = schedule(*args, **kwargs)
        steps.append(output.total_num_scheduled_tokens > 0)
        return output

    scheduler.schedule = counted
    return steps


def _run(
    llm: Any, steps: list[int], drafter: str, sheet: Any, told: list[dict[str, Any]], *, forks: bool
) -> Run:
    from vllm import SamplingParams

    params = SamplingParams(
        temperature=0.0, max_tokens=MAX_TOKENS, extra_args={"forkjoin": {"enabled": forks}}
    )
    llm.reset_prefix_cache()
    steps.clear()
    messages = [{"role": "user", "content": sheet.prompt}]
    began = time.perf_counter()
    (output,) = llm.chat(messages, params, use_tqdm=False)
    seconds = time.perf_counter() - began
    drafted = [e for e in told if e["type"] == "drafted"]
    return Run(
        drafter,
        len(sheet.problems),
        forks,
        sum(steps),
        seconds,
        next((e["num_threads"] for e in told if e["type"] == "family_ended"), 0),
        tuple(output.outputs[0].token_ids),
        {e["source"]: e["num"] for e in drafted},
        {e["source"]: e["num_right"] for e in drafted},
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
    parser.add_argument("--drafters", nargs="+", choices=[d for d in DRAFTERS if d != NONE], metavar="NAME")
    parser.add_argument("--drafts", type=int, default=4, metavar="N", help="tokens drafted for a step")
    parser.add_argument("--problems", type=int, nargs="+", default=[2, 3, 6])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("build/bench"), metavar="FOLDER")


def main(args: argparse.Namespace) -> None:
    """Measure, print, write."""
    if args.rounds < 1 or args.drafts < 1:
        raise UsageError("--rounds, --drafts: expected at least 1")
    drafters = [NONE, *(args.drafters or [d for d in DRAFTERS if d != NONE])]
    before, runs = host_facts(), []
    for drafter in drafters:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            runs += pool.submit(measure, drafter, args.drafts, args.problems, args.rounds, args.seed).result()
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
    print(f"written to {write_json(args.out, 'drafted', result)}")
