"""``forkjoin bench simulate``: run, goodput, compare and validate."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from forkjoin.terminal.drawing import DARK, LIGHT
from forkjoin_bench.simulator.checks import check
from forkjoin_bench.simulator.cluster import ROUTERS, simulate
from forkjoin_bench.simulator.costs import MULTIVERSE as MULTIVERSE_COST
from forkjoin_bench.simulator.costs import Cost, Linear
from forkjoin_bench.simulator.engine import Engine
from forkjoin_bench.simulator.foreseen import Foreseen
from forkjoin_bench.simulator.gates import AtMost, FamilyAware, Gate, Greedy
from forkjoin_bench.simulator.replica.relief import NoRoom
from forkjoin_bench.simulator.results.measures import Result, Slo
from forkjoin_bench.simulator.results.plots import draw_curves
from forkjoin_bench.simulator.results.table import goodput_table, results_table, validation_table
from forkjoin_bench.simulator.shapes import SHAPES
from forkjoin_bench.simulator.tried import Outlasting, Sure
from forkjoin_bench.simulator.workload import (
    MULTIVERSE,
    PACORE,
    THREADWEAVER,
    Request,
    Spoken,
    at_rate,
    draw,
    in_sessions,
    peak_tokens,
)
from forkjoin_scheduler.errors import UsageError
from forkjoin_scheduler.policy.step_cost import Load, StepCost
from forkjoin_scheduler.policy.threads import AIM, Capped, Eager, Slack, ThreadPolicy

BLOCK_SIZE = 16
#: Shapes of dialects that join in another way than ThreadWeaver.
SPOKEN = {"pacore": PACORE}
#: Parts of the KV that all requests together would need at their widest.
FRACTIONS = (0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)


def gate_of(name: str, spoken: Spoken) -> Callable[[], Gate]:
    """The gate called ``name``, as the command's help lists them, for a dialect that is ``spoken``."""
    if name.isdecimal() and int(name):
        return lambda: AtMost(int(name))
    named: dict[str, Callable[[], Gate]] = {
        "family": FamilyAware,
        "greedy": Greedy,
        "foreseen": lambda: Foreseen(spoken),
        "outlasting": lambda: FamilyAware(Outlasting()),
    }
    if name in named:
        return named[name]
    if not (sure := re.fullmatch(r"sure(\d+(?:\.\d+)?)", name)):
        known = ", ".join(named)
        raise UsageError(
            f"admission: expected {known}, a number from 1 on, or sure with a number, got {name!r}"
        )
    times = float(sure[1])
    return lambda: FamilyAware(Sure(times))


def policy_of(name: str, slo_itl: float, cost: Cost) -> Callable[[], ThreadPolicy]:
    """``eager``, ``capped`` with a number behind it, or ``slack``, which knows what steps ``cost``."""
    if name.startswith("capped"):
        return lambda: Capped(int(name.removeprefix("capped")))
    named: dict[str, Callable[[], ThreadPolicy]] = {
        "eager": Eager,
        "slack": lambda: Slack(_known(cost), AIM * slo_itl),
    }
    return named[name]


def _known(cost: Cost) -> StepCost:
    learnt = StepCost()
    for n in range(1, 257):
        load = Load(n, n + 61 * (n % 7), 997 * n % 65_536)
        learnt.observe(load, cost(load))
    return learnt


def requests_of(args: argparse.Namespace) -> list[Request]:
    """The workload that the command line asks for."""
    requests = draw(SHAPES[args.shape], args.num, args.seed)
    if args.sessions:
        requests = list(in_sessions(requests, args.sessions, args.shared_tokens, args.seed))
    return at_rate(requests, args.rate, args.seed) if args.rate else requests


def engine_of(args: argparse.Namespace, requests: Sequence[Request], threads: str) -> Engine:
    """The engine that the command line asks for, with the policy ``threads``."""
    spoken = MULTIVERSE if args.stitched else SPOKEN.get(args.shape, THREADWEAVER)
    if args.stitched and args.shape in SPOKEN:
        raise UsageError(
            f"--stitched: expected a shape whose joins keep KV, {args.shape} asks with new prompts"
        )
    slo_itl = args.slo_itl_ms / 1e3
    cost = MULTIVERSE_COST
    if args.step_ms:
        base, token = args.step_ms
        cost = Linear(base / 1e3, per_token=token / 1e3)
    return Engine(
        num_blocks=args.blocks or num_blocks(requests, args.kv, args.replicas),
        block_size=BLOCK_SIZE,
        join_ahead_tokens=args.join_ahead_tokens,
        max_num_seqs=args.slots,
        spoken=spoken,
        gate=gate_of(args.admission, spoken),
        policy=policy_of(threads, slo_itl, cost),
        cost=cost,
        slo_itl=slo_itl if threads == "slack" else None,
        drafted=args.drafted,
        tokens_a_step=args.tokens_a_step,
    )


def num_blocks(requests: Sequence[Request], fraction: float, num_replicas: int = 1) -> int:
    """A part of what all need at their widest, and no less than what the widest alone needs."""
    each = [peak_tokens(r) / BLOCK_SIZE + 16 for r in requests]
    return int(max(fraction * sum(each) / num_replicas, 1.2 * max(each) + 64))


def run(args: argparse.Namespace) -> dict[str, Result]:
    """A simulation with each thread policy."""
    requests = requests_of(args)
    return {
        f"{args.shape}, {args.admission}, {threads}": _simulated(
            args, engine_of(args, requests, threads), requests
        )
        for threads in args.threads
    }


def goodput(args: argparse.Namespace) -> dict[tuple[float, str], list[Result]]:
    """By load and thread policy, a simulation of each seed."""
    found: dict[tuple[float, str], list[Result]] = {}
    for rate in args.rates:
        for seed in range(1, args.seeds + 1):
            requests = requests_of(argparse.Namespace(**{**vars(args), "rate": rate, "seed": seed}))
            for threads in args.threads:
                result = _simulated(args, engine_of(args, requests, threads), requests)
                found.setdefault((rate, threads), []).append(result)
    return found


def _of_load(
    args: argparse.Namespace, rate: float, threads: str, runs: Sequence[Result]
) -> dict[str, object]:
    """For JSON, and for ``forkjoin bench targets``."""
    return {
        "load": f"{args.shape}, {rate:g} a second",
        "threads": threads,
        "slo_itl_ms": args.slo_itl_ms,
        "runs": [r.as_dict() for r in runs],
    }


def compare(args: argparse.Namespace) -> dict[str, Result]:
    """The gates over KV sizes."""
    requests, curves = requests_of(args), {}
    for name in args.gates:
        engine = engine_of(args, requests, args.threads)
        curves[name] = {
            part: _simulated(
                args,
                replace(
                    engine,
                    gate=gate_of(name, engine.spoken),
                    num_blocks=num_blocks(requests, part, args.replicas),
                ),
                requests,
            )
            for part in FRACTIONS
        }
    if args.plot:
        named = {f"at most {n}" if n.isdigit() else n: curve for n, curve in curves.items()}
        draw_curves(named, args.plot, "KV, as a part of what all families need", DARK if args.dark else LIGHT)
    return {f"{name}, {part:g} of the KV": r for name, curve in curves.items() for part, r in curve.items()}


def _simulated(args: argparse.Namespace, engine: Engine, requests: Sequence[Request]) -> Result:
    slo = Slo(args.slo_ttft_s, args.slo_itl_ms / 1e3)
    try:
        return simulate(requests, engine, num_replicas=args.replicas, router=ROUTERS[args.router](), slo=slo)
    except NoRoom as error:
        raise UsageError(f"--blocks, --kv: {error}") from error


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, run, print, write."""
    args = _parser().parse_args(argv)
    check(args)
    if args.command == "validate":
        if find_spec("tests") is None:
            raise UsageError(
                "bench simulate validate: expected a checkout, whose tests drive the engine: "
                'use make bench ARGS="simulate validate"'
            )
        from forkjoin_bench.simulator.validation import compare as compare_runs
        from forkjoin_bench.simulator.validation import record

        compared = compare_runs(record(uses_wall=args.wall))
        print(validation_table(compared))
        found: object = [c.as_dict() for c in compared]
    elif args.command == "goodput":
        by_load = goodput(args)
        print(goodput_table(by_load))
        found = {"goodput": [_of_load(args, *key, of_seeds) for key, of_seeds in by_load.items()]}
    else:
        results = (run if args.command == "run" else compare)(args)
        print(results_table(results))
        found = {name: result.as_dict() for name, result in results.items()}
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="forkjoin bench simulate", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="Simulate each thread policy.")
    compare = commands.add_parser("compare", help="Simulate kinds of admission over sizes of the KV cache.")
    goodput = commands.add_parser("goodput", help="Count what is in time, by load and thread policy.")
    for command in (run, compare, goodput):
        _add_traffic(command)
        _add_engine(command)
        _add_steps(command)
    for command in (run, compare):
        _add_load(command)
    policies = "eager, capped with a number (capped2), or slack"
    for command, default in ((run, ["eager"]), (goodput, ["eager", "capped2", "slack"])):
        command.add_argument(
            "--threads",
            nargs="+",
            default=default,
            metavar="POLICY",
            help=f"Thread policies that are compared: {policies}. Default: {', '.join(default)}.",
        )
    goodput.add_argument(
        "--rates", type=float, nargs="+", required=True, metavar="R", help="Requests a second, of each load."
    )
    goodput.add_argument(
        "--seeds",
        type=int,
        default=3,
        metavar="N",
        help="Seeds of each load, from 1 on. Default: %(default)s.",
    )
    compare.add_argument(
        "--threads",
        default="eager",
        metavar="POLICY",
        help=f"Thread policy: {policies}. Default: %(default)s.",
    )
    gates = ["greedy", "family", "4", "8", "16"]
    compare.add_argument(
        "--gates",
        nargs="+",
        default=gates,
        metavar="GATE",
        help=f"Kinds of admission, or fixed numbers of families. Default: {', '.join(gates)}.",
    )
    compare.add_argument(
        "--plot", type=Path, metavar="FILE", help="Draw the curves into this SVG or PNG file."
    )
    compare.add_argument("--dark", action="store_true", help="Draw on a dark background.")
    validate = commands.add_parser("validate", help="Compare with the real engine. It needs a checkout.")
    validate.add_argument(
        "--wall", action="store_true", help="Measure wall time instead of CPU time, on an idle machine."
    )
    for command in commands.choices.values():
        command.add_argument("--json", type=Path, metavar="FILE", help="Write all results into this file.")
    return parser


def _add_traffic(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--shape", choices=SHAPES, default="tight", help="Shape of the requests. Default: %(default)s."
    )
    for flag, number, says in (
        ("--num", 100, "Number of requests."),
        ("--sessions", 0, "Sessions whose requests share a prefix. With 0, none do."),
        ("--shared-tokens", 2000, "Tokens of the prefix that a session shares."),
    ):
        command.add_argument(
            flag, type=int, default=number, metavar="N", help=f"{says} Default: %(default)s."
        )


def _add_load(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--rate",
        type=float,
        default=0.0,
        metavar="R",
        help="Requests a second, as a Poisson process. With 0, all arrive at once. Default: %(default)s.",
    )
    command.add_argument(
        "--seed", type=int, default=1, metavar="N", help="Seed of the requests. Default: %(default)s."
    )


def _add_engine(command: argparse.ArgumentParser) -> None:
    command.add_argument("--stitched", action="store_true", help="Stitch joins instead of prefilling them.")
    command.add_argument(
        "--replicas", type=int, default=1, metavar="N", help="Number of replicas. Default: %(default)s."
    )
    command.add_argument(
        "--router", choices=ROUTERS, default="least-loaded", help="Router before them. Default: %(default)s."
    )
    command.add_argument("--blocks", type=int, metavar="N", help="KV blocks of a replica. Default: see --kv.")
    command.add_argument(
        "--kv",
        type=float,
        default=0.5,
        metavar="PART",
        help="KV blocks without --blocks, as a part of what all requests need at their widest. Default: "
        "%(default)s.",
    )
    command.add_argument(
        "--slots", type=int, default=256, metavar="N", help="Sequences of one step. Default: %(default)s."
    )
    command.add_argument(
        "--admission",
        default="family",
        metavar="GATE",
        help="Who is let in: family, greedy, a number of families, or a rule of docs/benchmarks.md. "
        "Default: %(default)s.",
    )
    command.add_argument(
        "--join-ahead-tokens",
        type=int,
        default=128,
        metavar="N",
        help="Tokens that are prefilled at once for joins to come. Default: %(default)s.",
    )


def _add_steps(command: argparse.ArgumentParser) -> None:
    """Add what steps take, and what they are to take."""
    command.add_argument(
        "--step-ms",
        type=float,
        nargs=2,
        metavar=("BASE", "TOKEN"),
        help="Milliseconds of a step and of each token in it. Default: Multiverse's.",
    )
    command.add_argument(
        "--drafted",
        type=int,
        default=0,
        metavar="N",
        help="Drafts that each decoding sequence verifies in a step. Default: %(default)s.",
    )
    command.add_argument(
        "--tokens-a-step",
        type=float,
        default=1.0,
        metavar="N",
        help="Tokens that a sequence gets of a step with drafts, on average. Default: %(default)s.",
    )
    command.add_argument(
        "--slo-itl-ms",
        type=float,
        default=50.0,
        metavar="MS",
        help="Milliseconds between two tokens that count as good. slack keeps to them. Default: %(default)s.",
    )
    command.add_argument(
        "--slo-ttft-s",
        type=float,
        default=2.0,
        metavar="S",
        help="Seconds to the first token that count as good. Default: %(default)s.",
    )


if __name__ == "__main__":
    main(sys.argv[1:])
