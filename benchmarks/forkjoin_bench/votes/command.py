"""The arguments of ``forkjoin bench votes``, and what it prints and writes."""

from __future__ import annotations

import argparse
import random
import statistics
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from forkjoin_bench.host import host_facts
from forkjoin_bench.inputs.models import make_model
from forkjoin_bench.progress import working
from forkjoin_bench.results import add_out, write_json
from forkjoin_bench.tables import table
from forkjoin_bench.vllm_seam.engine import set_environment, start_engine
from forkjoin_bench.votes.measure import LOSSLESS, WAYS, Asked, Bench, Voted
from forkjoin_bench.votes.questions import SUBJECTS
from forkjoin_scheduler.errors import UsageError

COLUMNS = (
    "way", "tokens", "of all", "steps", "CPU s", "of all", "cut", "not started", "pruned",
    "same thread and text", "same result",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.add_argument(
        "--model", choices=SUBJECTS, default="embedded", help="Model that votes. Default: %(default)s."
    )
    parser.add_argument(
        "--votes", type=int, default=20, metavar="N", help="Number of votes. Default: %(default)s."
    )
    parser.add_argument(
        "--best-of", type=int, default=16, metavar="N", help="Threads of each vote. Default: %(default)s."
    )
    parser.add_argument(
        "--at-once",
        type=int,
        nargs="+",
        default=(1, 8),
        metavar="N",
        help="Votes that run at the same time. Default: 1 and 8.",
    )
    parser.add_argument(
        "--slots", type=int, default=32, metavar="N", help="Sequences of one step. Default: %(default)s."
    )
    parser.add_argument(
        "--blocks", type=int, metavar="N", help="KV blocks. The way that prunes by memory needs few of them."
    )
    parser.add_argument(
        "--ways",
        nargs="+",
        choices=WAYS,
        default=tuple(WAYS),
        metavar="WAY",
        help="Ways to end a vote that are compared. Default: all of them.",
    )
    parser.add_argument("--temperature", type=float, metavar="T", help="Temperature. Default: the model's.")
    parser.add_argument(
        "--dtype",
        default="float32",
        help="Type of the weights. With a less precise type, batches change what is sampled. Default: "
        "%(default)s.",
    )
    parser.add_argument(
        "--seed", type=int, default=1, metavar="N", help="Seed of the questions. Default: %(default)s."
    )
    add_out(parser)


def main(args: argparse.Namespace) -> None:
    """Measure, print, write. Raises UsageError if a lossless way had another answer than waiting for all."""
    if args.votes < 1 or args.best_of < 1 or min(args.at_once) < 1:
        raise UsageError("--votes, --best-of, --at-once: expected at least 1")
    set_environment()
    subject = SUBJECTS[args.model]
    options: dict[str, Any] = {
        "vote": subject.vote,
        "max_tokens": subject.max_tokens,
        "temperature": subject.temperature if args.temperature is None else args.temperature,
    }
    folder = (args.out / "votes").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    llm = start_engine(
        str(make_model(args.model, folder).folder),
        ["--dialect", "explicit"],
        dtype=args.dtype,
        max_model_len=1024,
        max_num_seqs=args.slots,
        num_gpu_blocks_override=args.blocks,
        enforce_eager=True,
    )
    chance, tokenizer = random.Random(args.seed), llm.get_tokenizer()
    chat: dict[str, Any] = {"tokenize": False, "add_generation_prompt": True}
    asked = [
        Asked(str(tokenizer.apply_chat_template(_turns(subject.ask(chance)), **chat)), seed)
        for seed in range(args.votes)
    ]
    bench, before = Bench(llm), host_facts()
    bench.run("all", asked[:1], args.best_of, options)  # warms up
    results = {str(n): _measure(bench, asked, n, args, options) for n in args.at_once}
    facts = {"command": args.command, "host": before, "load_average_after": host_facts()["load_average"]}
    runs = {n: {way: list(map(asdict, v)) for way, v in found.items()} for n, found in results.items()}
    path = write_json(args.out, f"votes-{args.model}", facts | {"options": options, "runs": runs})
    wrong = []
    for at_once, found in results.items():
        print(f"\n{args.votes} votes of {args.best_of} threads, {at_once} at a time, {args.slots} slots\n")
        print(table(COLUMNS, rows(found)))
        wrong += [f"{way}, {at_once} at a time" for way in LOSSLESS if not is_same(found, way)]
    print(f"\nwritten: {path}")
    if wrong:
        raise UsageError(f"expected the answers of waiting for all, got others: {'; '.join(wrong)}")


def _measure(
    bench: Bench, asked: list[Asked], at_once: int, args: argparse.Namespace, options: dict[str, Any]
) -> dict[str, list[Voted]]:
    """The votes of each way: batch by batch, in all ways, the first of them another each time."""
    found: dict[str, list[Voted]] = {way: [] for way in dict.fromkeys(["all", *args.ways])}
    with working(f"votes, {at_once} at a time", len(asked) * len(found)) as work:
        for number, batch in enumerate(_batches(asked, at_once)):
            ways = list(found)
            for way in ways[number % len(ways) :] + ways[: number % len(ways)]:
                found[way] += bench.run(way, batch, args.best_of, options)
                work.say(f"{at_once} at a time, batch {number + 1}: {way}")
                work.done(len(batch))
    return found


def _batches(asked: list[Asked], size: int) -> Iterator[list[Asked]]:
    return (asked[i : i + size] for i in range(0, len(asked), size))


def is_same(found: dict[str, list[Voted]], way: str) -> bool:
    """Whether each vote run this way has the answer of waiting for all: its thread, its result, its text."""
    return way not in found or num_same(found["all"], found[way]) == len(found["all"])


def num_same(whole: list[Voted], early: list[Voted]) -> int:
    """How many votes have the same thread, result and text."""
    return sum(_answer(a) == _answer(b) for a, b in zip(whole, early, strict=True))


def _answer(voted: Voted) -> tuple[int, str | None, list[int]]:
    return voted.index, voted.result, voted.token_ids


def rows(found: dict[str, list[Voted]]) -> list[list[object]]:
    """A row a way, as ``COLUMNS`` has them: means a vote; of threads, too."""
    whole = found["all"]
    made: list[list[object]] = []
    for way, votes in found.items():
        tokens, seconds = (statistics.fmean(getattr(v, name) for v in votes) for name in ("tokens", "cpu_s"))
        left_out = sum((Counter(v.left_out) for v in votes), Counter())
        same_result = sum(a.result == b.result for a, b in zip(whole, votes, strict=True))
        made.append(
            [
                way,
                f"{tokens:.0f}",
                f"{tokens / statistics.fmean(v.tokens for v in whole):.2f}",
                f"{statistics.fmean(v.steps for v in votes):.0f}",
                f"{seconds:.2f}",
                f"{seconds / statistics.fmean(v.cpu_s for v in whole):.2f}",
                *(f"{left_out[reason] / len(votes):.1f}" for reason in ("cut", "not_started", "pruned")),
                f"{num_same(whole, votes)}/{len(votes)}",
                f"{same_result}/{len(votes)}",
            ]
        )
    return made


def _turns(question: str) -> Any:
    """A chat of one ``question``."""
    return [{"role": "user", "content": question}]
