"""What one fork and its join cost the scheduler, by the length of the context: ``forkjoin bench forks``.

A scheduler is fed tokens as if a model had sampled them. A request forks after so many tokens into so many
short threads, and joins. A fork's cost is the CPU time of ``update_from_output`` in the step that samples
the trigger and of ``schedule`` in the next one; a join's is that of all between the threads' last step and
the parent's next. Beside it stand what handing these steps to workers in other processes takes, and the
blocks hashed.

The same is measured of vLLM's own scheduler, whose client sends each thread, then the joined context, as a
request.
"""

from __future__ import annotations

import argparse
import gc
import math
import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from forkjoin_bench.arguments import check_at_least
from forkjoin_bench.host import host_facts
from forkjoin_bench.inputs.dialects import dialect_with
from forkjoin_bench.inputs.script import Compiled, Compiler, header
from forkjoin_bench.inputs.traces import Author, Family, forks_in
from forkjoin_bench.inputs.words import Words
from forkjoin_bench.progress import working
from forkjoin_bench.results import add_out, write_json
from forkjoin_bench.scheduler_cost import BLOCK_SIZE
from forkjoin_bench.tables import table
from forkjoin_scheduler.dialects.tokenizer import Tokenizer
from forkjoin_scheduler.settings import KEY, UNLIMITED, Settings
from forkjoin_server.start.configuration import EMBEDDED_MODEL
from forkjoin_server.vllm_seam.tokenizers import tokenizer_of

if TYPE_CHECKING:
    from forkjoin_bench.vllm_seam.fed import Fed, FedStep

CONTEXTS, WIDTHS, ROUNDS = (1024, 8192, 32768, 131072), (2, 8, 64), 3
STOCK, REPREFILL, STITCH = "vLLM, asked by a client", "re-prefill join", "stitched join"
#: Our systems, and the kinds of their joins.
JOINS = {REPREFILL: "reprefill", STITCH: "stitch"}
SYSTEMS = (STOCK, REPREFILL, STITCH)
THREAD_TOKENS = 8


@dataclass(frozen=True)
class Cost:
    """What a fork, or a join, costs: milliseconds of the scheduler and of handing over, MB, hashed blocks."""

    scheduler_ms: float
    handover_ms: float
    handover_mb: float
    num_hashed: float


@dataclass(frozen=True)
class Case:
    """A fork and its join, at a context's length."""

    system: str
    context: int
    width: int
    fork: Cost
    join: Cost


def cost(spent: Iterable[Any], steps: Iterable[FedStep]) -> Cost:
    """The sum of what was ``spent``, and of handing ``steps`` over."""
    spent, steps = list(spent), list(steps)
    return Cost(
        1e3 * sum(s.seconds for s in spent),
        1e3 * sum(s.handover_s for s in steps),
        1e-6 * sum(s.handover_bytes for s in steps),
        sum(s.num_hashed for s in spent),
    )


def between(last: FedStep, steps: Sequence[FedStep]) -> Cost:
    """The cost from the end of ``last`` to the start of the last one of ``steps``, which follow it."""
    spent = [last.after, *(part for step in steps for part in (step.before, step.after))]
    return cost(spent[:-1], steps)


def median(costs: Sequence[Cost]) -> Cost:
    """The median of each number."""
    return Cost(*(statistics.median(numbers) for numbers in zip(*map(_numbers, costs), strict=True)))


def _numbers(of: Cost) -> tuple[float, ...]:
    return tuple(asdict(of).values())


def family_of(context: int, width: int, words: Words) -> Family:
    """One that forks after a prompt of ``context`` tokens, and its outline."""
    author = Author(words, f"forks/{context}/{width}")
    body = (author.text(2), author.fork([THREAD_TOKENS] * width), author.text(8))
    return Family(f"{context}-{width}", author.text(context), body)


def make_scheduler(system: str, compiled: Compiled, width: int) -> Fed:
    """One of ours, or vLLM's own, with room for a family of ``width`` threads."""
    from forkjoin_bench.vllm_seam.fed import fed
    from forkjoin_scheduler.vllm_seam.compat import WORKER

    options: dict[str, Any] = {}
    if system in JOINS:
        settings = Settings(dialect=dialect_with(JOINS[system]), limits=UNLIMITED, admission="greedy")
        options["additional_config"] = {KEY: settings.model_dump(mode="json")}
        options["worker_cls"] = WORKER if system == STITCH else "auto"
    # A stitched join wants room for a whole context, and one for what it is made of.
    max_model_len = len(compiled.prompt_ids) + len(compiled.token_ids) + 1024
    return fed(
        2 * max_model_len // BLOCK_SIZE + 16 * width + 100,
        stock=system == STOCK,
        model=str(EMBEDDED_MODEL),
        block_size=BLOCK_SIZE,
        max_num_seqs=max(width, 8),
        max_num_batched_tokens=1 << 18,
        max_model_len=max_model_len,
        **options,
    )


def forked(fed: Fed, compiled: Compiled, name: str) -> tuple[Cost, Cost]:
    """The cost of a fork in the engine, and of its join."""
    width = len(compiled.forks[0].threads)
    fed.ask(compiled, name)
    steps = [fed.take_step(hands_over=True)]
    while len(steps[-1].sequences) < width:
        steps.append(fed.take_step(hands_over=True))
    fork = between(steps[-2], steps[-1:])
    last, behind = steps[-1], []
    while last.sequences != (name,):
        step = fed.take_step(hands_over=True)
        behind.append(step)
        if any(i != name and "#fill" not in i for i in step.sequences):
            threads_last, behind = step, []
        last = step
    fed.cancel([name])
    return fork, between(threads_last, behind)


def asked(fed: Fed, compiled: Compiled, name: str, tokenizer: Tokenizer) -> tuple[Cost, Cost]:
    """The cost of a fork by a client that asks for each thread, and of its join."""
    transcript = compiled.prompt_ids + compiled.token_ids
    (fork,) = forks_in(compiled.family.body)
    context = transcript[: compiled.forks[0].fork_len]
    fed.ask(compiled, name)
    for _ in range(len(context) - len(compiled.prompt_ids)):
        fed.take_step()
    fed.cancel([name])
    threads = {f"{name}/{t.number}": context + tokenizer.encode(header(t.number)) for t in fork.threads}
    costs = [_ask(fed, threads)]
    for _ in range(THREAD_TOKENS):
        fed.take_step()
    fed.cancel(threads)
    (joined,) = (c for c in compiled.contexts if c.kind == "join")
    costs.append(_ask(fed, {f"{name}+": transcript[: joined.length]}))
    fed.cancel([f"{name}+"])
    return costs[0], costs[1]


def _ask(fed: Fed, requests: dict[str, list[int]]) -> Cost:
    """The cost of starting these requests."""
    sent = [fed.spent(partial(fed.ask_for, ids, i))[1] for i, ids in requests.items()]
    step = fed.take_step(hands_over=True)
    assert len(step.sequences) == len(requests), f"expected {len(requests)} to run, got {step.sequences}"
    return cost([*sent, step.before], [step])


def measure(context: int, width: int, rounds: int) -> list[Case]:
    """The cost of a fork and a join for each system: medians of ``rounds`` after one that finds no prompt."""
    tokenizer = tokenizer_of(str(EMBEDDED_MODEL))
    compiled = Compiler(tokenizer).compile(family_of(context, width, Words(tokenizer)))
    cases = []
    for system in SYSTEMS:
        fed, costs = make_scheduler(system, compiled, width), []
        gc.collect()
        gc.disable()  # its pauses are the process's, not a fork's
        for i in range(rounds + 1):
            name = f"f{i}"
            both = asked(fed, compiled, name, tokenizer) if system == STOCK else forked(fed, compiled, name)
            costs.append(both)
        gc.enable()
        forks, joins = zip(*costs[1:], strict=True)
        cases.append(Case(system, context, width, median(forks), median(joins)))
    return cases


def growth(cases: Sequence[Case], width: int, what: str) -> float:
    """The exponent of growth of the scheduler's time with the context; 1: linear."""
    own = sorted((c for c in cases if c.width == width), key=lambda c: c.context)
    low, high = own[0], own[-1]
    ratio = getattr(high, what).scheduler_ms / getattr(low, what).scheduler_ms
    return math.log(ratio) / math.log(high.context / low.context)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``main``."""
    for flag, default, what in (
        ("--contexts", CONTEXTS, "Tokens of the prompt"),
        ("--widths", WIDTHS, "Threads of the fork"),
    ):
        parser.add_argument(
            flag,
            type=int,
            nargs="+",
            default=default,
            metavar="N",
            help=f"{what}. Default: {', '.join(map(str, default))}.",
        )
    parser.add_argument(
        "--rounds",
        type=int,
        default=ROUNDS,
        metavar="N",
        help="Forks that each number is the median of. Default: %(default)s.",
    )
    add_out(parser)


def markdown(cases: Sequence[Case], what: str) -> str:
    """The table of forks, or of joins: a row for each width and system, a column for each context."""
    contexts = sorted({c.context for c in cases})
    by_case = {(c.width, c.system, c.context): getattr(c, what) for c in cases}
    rows = []
    for width, system in dict.fromkeys((c.width, c.system) for c in cases):
        row = [by_case[width, system, context] for context in contexts]
        exponent = ""
        if len(contexts) > 1:
            exponent = f"{growth([c for c in cases if c.system == system], width, what):.2f}"
        rows.append([width, system, *map(_cell, row), exponent])
    return table(["threads", what, *map(str, contexts), "growth"], rows)


def _cell(of: Cost) -> str:
    return f"{of.scheduler_ms:.1f} + {of.handover_ms:.1f} ms, {of.handover_mb:.2f} MB, {of.num_hashed:.0f}"


def main(args: argparse.Namespace) -> None:
    """Measure, print, write."""
    check_at_least(
        ("--contexts", min(args.contexts), 1), ("--widths", min(args.widths), 1), ("--rounds", args.rounds, 1)
    )
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "1")
    cases: list[Case] = []
    with working("forks", len(args.widths) * len(args.contexts)) as work:
        for width in args.widths:
            for context in args.contexts:
                cases += measure(context, width, args.rounds)
                work.done()
    print("By tokens of context: CPU ms of the scheduler + of handing over to workers, MB, blocks hashed.")
    for what in ("fork", "join"):
        print(f"\n{markdown(cases, what)}")
    result = {"host": host_facts(), "cases": [asdict(case) for case in cases]}
    print(f"written to {write_json(args.out, 'forks', result)}")
