"""The arguments of ``forkjoin bench overload``, and what it prints and writes."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict, replace

from forkjoin_bench.host import host_facts
from forkjoin_bench.overload.plan import Plan
from forkjoin_bench.overload.result import Result, problems
from forkjoin_bench.overload.run import run
from forkjoin_bench.results import add_out, write_json
from forkjoin_bench.tables import table
from forkjoin_scheduler.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    default = Plan()
    for flag, number, says in (
        ("--requests", default.requests, "Requests that arrive at once."),
        ("--stalled", default.stalled, "Clients that never read their answer."),
        ("--cancelled", default.cancelled, "Clients that hang up early."),
        ("--max-tokens", default.max_tokens, "Tokens of one answer."),
        ("--blocks", default.num_blocks, "KV blocks of the server."),
    ):
        parser.add_argument(flag, type=int, default=number, metavar="N", help=f"{says} Default: %(default)s.")
    parser.add_argument(
        "--limit",
        type=float,
        default=default.limit_s,
        metavar="S",
        help="Seconds that everything may take. Default: %(default)s.",
    )
    parser.add_argument("--stock", action="store_true", help="Then send the same requests to vllm serve.")
    add_out(parser)
    parser.add_argument("flags", nargs="*", metavar="-- FLAG", help="Flags for forkjoin serve.")


def main(args: argparse.Namespace) -> None:
    """Run it, print and write what came of it. Raises UsageError where what must hold does not."""
    plan = Plan(
        requests=args.requests,
        stalled=args.stalled,
        cancelled=args.cancelled,
        max_tokens=args.max_tokens,
        num_blocks=args.blocks,
        limit_s=args.limit,
        flags=tuple(args.flags),
    )
    if plan.stalled + plan.cancelled > plan.requests:
        raise UsageError("--requests: expected at least as many as are stalled and cancelled")
    args.out.mkdir(parents=True, exist_ok=True)
    plans = [plan, *([replace(plan, is_stock=True, flags=())] if args.stock else [])]
    results = {one.name: run(one, args.out) for one in plans}
    facts = {"command": args.command, "host": host_facts(), "plan": asdict(plan)}
    found = {name: asdict(result) for name, result in results.items()}
    path = write_json(args.out, "overload", facts | {"results": found})
    print(table(["", *results], rows(list(results.values()))))
    print(f"written: {path}")
    for one in plans[1:]:
        print(f"{one.name}: {'; '.join(problems(one, results[one.name])) or 'all that must hold, holds'}")
    if wrong := problems(plan, results[plan.name]):
        raise UsageError("; ".join(wrong))
    print(f"{plan.name}: all that must hold, holds")


def rows(results: list[Result]) -> list[list[str]]:
    """What there is to say of ``results``, a column each."""
    return [[label, *(str(say(result)) for result in results)] for label, say in _LINES.items()]


def _at(spread: dict[str, float]) -> str:
    return " / ".join(f"{spread[q]:.2f}" for q in ("p50", "p99", "max")) if spread else "-"


def _growth(result: Result) -> int:
    return max((m["peak"] - m["before"] for m in result.memory_mib.values()), default=0)


_LINES: dict[str, Callable[[Result], object]] = {
    "finished": lambda r: r.outcomes["finished"],
    "forked": lambda r: r.forked,
    "refused": lambda r: r.outcomes["refused"],
    "hung up, or never read": lambda r: r.outcomes["cancelled"],
    "failed": lambda r: r.outcomes["failed"],
    "lost": lambda r: r.outcomes["lost"],
    "s to a refusal, p50 / p99 / max": lambda r: _at(r.refused_s),
    "s to the first token, p50 / p99 / max": lambda r: _at(r.first_token_s),
    "s to the end of an answer, p50 / p99 / max": lambda r: _at(r.finished_s),
    "s to the answer of /health, p50 / p99 / max": lambda r: _at(r.health_s),
    "/health failed": lambda r: r.num_health_failed,
    "MiB that a process grew by, at most": _growth,
    "tracebacks in the log": lambda r: r.num_tracebacks,
    "s for all of it": lambda r: r.wall_s,
}
