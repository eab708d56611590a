"""What ``forkjoin bench simulate`` refuses of its arguments, before anything runs."""

from __future__ import annotations

import argparse
import re

from forkjoin_bench.arguments import check_at_least
from forkjoin_bench.simulator.engine import Engine
from forkjoin_scheduler.errors import UsageError


def check(args: argparse.Namespace) -> None:
    """Raise UsageError for the first argument that can't be simulated."""
    if args.json is not None and not args.json.parent.is_dir():
        raise UsageError(f"--json: expected a file in a folder that is there, got {args.json}: make it first")
    if args.command == "validate":
        return
    _check_whole_numbers(args)
    _check_others(args)
    _check_engine(args)
    for name in [args.threads] if isinstance(args.threads, str) else args.threads:
        check_policy(name)


def check_policy(name: str) -> None:
    """Raise UsageError for a thread policy that there is not."""
    if not re.fullmatch(r"eager|slack|capped0*[1-9]\d*", name):
        raise UsageError(
            f"--threads: expected eager, slack, or capped with a number from 1 on (capped2), got {name!r}"
        )


def _check_whole_numbers(args: argparse.Namespace) -> None:
    least = (
        ("num", 1), ("replicas", 1), ("slots", 1), ("seeds", 1), ("blocks", 1), ("sessions", 0),
        ("shared_tokens", 0), ("join_ahead_tokens", 0), ("drafted", 0),
    )  # fmt: skip
    given = ((name, getattr(args, name, None), number) for name, number in least)
    check_at_least(*((_flag(name), value, number) for name, value, number in given if value is not None))


def _check_others(args: argparse.Namespace) -> None:
    positive = [(name, getattr(args, name)) for name in ("kv", "slo_itl_ms", "slo_ttft_s")]
    positive += [("rates", rate) for rate in getattr(args, "rates", ())]
    base, token = args.step_ms or (1.0, 0.0)
    for name, value in (*positive, ("step_ms", base)):
        if not value > 0:
            raise UsageError(f"{_flag(name)}: expected more than 0, got {value:g}")
    for name, value in (("rate", getattr(args, "rate", 0.0)), ("step_ms", token)):
        if not value >= 0:
            raise UsageError(f"{_flag(name)}: expected at least 0, got {value:g}")


def _check_engine(args: argparse.Namespace) -> None:
    if args.slots > Engine.max_batched_tokens:
        raise UsageError(f"--slots: expected at most {Engine.max_batched_tokens}, got {args.slots}")
    if not 1 <= args.tokens_a_step <= 1 + args.drafted:
        raise UsageError(
            f"--tokens-a-step: expected 1 to 1 + --drafted ({1 + args.drafted}), got {args.tokens_a_step:g}"
        )


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
