"""``forkjoin bench``: its arguments, and what they start."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from forkjoin_bench.arguments import check_at_least
from forkjoin_bench.results import add_out
from forkjoin_scheduler.errors import UsageError

ROUNDS, QUICK_ROUNDS = 5, 2
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def main(argv: list[str]) -> None:
    """Run ``forkjoin bench ARGV``. Raises UsageError for what can't be."""
    if argv[:1] == ["simulate"]:  # it has commands of its own
        from forkjoin_bench.simulator.__main__ import main as simulate

        simulate(argv[1:])
        return
    args = parser().parse_args(argv)
    args.command = " ".join(["forkjoin bench", *argv])
    args.run(args)


def parser() -> argparse.ArgumentParser:
    """What reads the arguments of ``forkjoin bench``."""
    whole = argparse.ArgumentParser(prog="forkjoin bench", description="Run benchmarks (docs/benchmarks.md).")
    commands = whole.add_subparsers(required=True, metavar="COMMAND")
    _add_run(commands)
    _add_of_results(commands, "report", "Make tables and plots of saved results.", _report)
    _add_single(commands)
    _add_of_results(commands, "targets", "Compare saved results with the targets.", _targets)
    commands.add_parser("simulate", help="Run the scheduler in virtual time (docs/simulator.md).")
    return whole


def _add_run(commands: Commands) -> None:
    run = commands.add_parser("run", help="Measure, and write JSON, tables and plots.")
    _add_what(run)
    _add_how_often(run)
    _add_engines(run)
    add_out(run)
    run.set_defaults(run=_run)


def _add_what(run: argparse.ArgumentParser) -> None:
    """Add what is measured."""
    from forkjoin_bench.comparison.scenarios import DEFAULT, MAKERS
    from forkjoin_bench.inputs.models import MODELS

    run.add_argument(
        "--model", choices=MODELS, default="embedded", help="Model that is measured. Default: %(default)s."
    )
    run.add_argument(
        "--scenario",
        nargs="+",
        choices=MAKERS,
        default=DEFAULT,
        help=f"Scenarios that run. Default: {' '.join(DEFAULT)}.",
    )
    run.add_argument(
        "--systems",
        nargs="+",
        default=(),
        metavar="NAME",
        help="Systems that are compared. Default: those of the scenario.",
    )
    run.add_argument(
        "--loads",
        nargs="+",
        default=(),
        metavar="NAME",
        help="Loads of the scenario that run. Default: all of them.",
    )
    run.add_argument(
        "--traces",
        nargs="+",
        default=(),
        metavar="NAME",
        help="Traces of the scenario that run. Default: all of them.",
    )


def _add_how_often(run: argparse.ArgumentParser) -> None:
    """Add how much of it, and how often."""
    run.add_argument(
        "--quick", action="store_true", help="Run fewer rounds, traces and requests, which takes minutes."
    )
    run.add_argument(
        "--rounds",
        type=int,
        metavar="N",
        help=f"Rounds of each measurement. Default: {ROUNDS}, or {QUICK_ROUNDS} with --quick.",
    )
    run.add_argument(
        "--starts",
        type=int,
        default=1,
        metavar="N",
        help="Repetitions of everything, each with newly started engines. Default: %(default)s.",
    )
    run.add_argument(
        "--seed", type=int, default=1, metavar="N", help="Seed of the traces. Default: %(default)s."
    )


def _add_engines(run: argparse.ArgumentParser) -> None:
    """Add what the engines are like, and how long they may take."""
    run.add_argument(
        "--block-size",
        type=int,
        default=32,
        metavar="N",
        help="Tokens of one KV block. Default: %(default)s.",
    )
    run.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="Type of weights and KV. auto is the model's own. A CPU without AVX-512 is many times "
        "faster with float32. Default: %(default)s.",
    )
    run.add_argument(
        "--compiled",
        action="store_true",
        help="Let the engines compile the model, which takes minutes longer.",
    )
    run.add_argument(
        "--slo-itl-ms",
        type=float,
        default=30.0,
        metavar="MS",
        help="Scenario goodput: milliseconds that an answer may take for a token of its critical path. "
        "Also what the slack policy is told. Default: %(default)g.",
    )
    run.add_argument(
        "--timeout",
        type=float,
        default=900.0,
        metavar="S",
        help="Seconds that one answer may take. Default: %(default)s.",
    )


def _add_of_results(
    commands: Commands, name: str, what: str, do: Callable[[argparse.Namespace], None]
) -> None:
    """Add a command that reads what ``run`` has saved."""
    command = commands.add_parser(name, help=what)
    command.add_argument("results", type=Path, nargs="+", metavar="JSON", help="Files of saved results.")
    command.set_defaults(run=do)


def _add_single(commands: Commands) -> None:
    """Add the commands that measure one thing each, and have their arguments in their own modules."""
    from forkjoin_bench import fork_cost, loads, offloaded, scheduler_cost
    from forkjoin_bench.drafted import command as drafted
    from forkjoin_bench.grouped import command as grouped
    from forkjoin_bench.kept import counts, first_tokens
    from forkjoin_bench.overload import command as overload
    from forkjoin_bench.votes import command as votes

    abacus = commands.add_parser("abacus", help="Measure the embedded model, forked and sequential.")
    _add_of_checkout(abacus, "abacus")
    for name, module, what in (
        ("drafted", drafted, "Measure speculative decoding, with and without forks."),
        ("first-tokens", first_tokens, "Measure when sub-agents on a kept context see their first tokens."),
        ("forks", fork_cost, "Measure what a fork and its join cost the scheduler."),
        ("grouped", grouped, "Count the KV that grouped attention reads; on a GPU, time it."),
        ("kept", counts, "Count tokens that sub-agents prefill again, with a kept context and without."),
        ("loads", loads, "Measure what loading KV takes, and computing it again."),
        (
            "offloaded",
            offloaded,
            "Count tokens recomputed under KV pressure, with a KV connector and without.",
        ),
        ("scheduler", scheduler_cost, "Measure the scheduler's CPU time per step."),
        ("overload", overload, "Send more requests than there is room for."),
        ("votes", votes, "Measure votes that end early."),
    ):
        command = commands.add_parser(name, help=what)
        module.add_arguments(command)
        command.set_defaults(run=module.main)


def _add_of_checkout(parser: argparse.ArgumentParser, name: str) -> None:
    """Add what the module ``name`` runs, whose prompts come from the training task of a checkout."""
    try:
        module = importlib.import_module(f"forkjoin_bench.{name}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "training":
            raise
        parser.set_defaults(run=_needs_checkout)
        return
    module.add_arguments(parser)
    parser.set_defaults(run=module.main)


def _needs_checkout(args: argparse.Namespace) -> None:
    raise UsageError(
        f"{args.command}: expected a checkout, whose training task gives its prompts: use make bench"
    )


def _check_run(args: argparse.Namespace, rounds: int) -> None:
    """Raise UsageError for numbers that can't be."""
    check_at_least(
        ("--rounds", rounds, 1), ("--starts", args.starts, 1), ("--block-size", args.block_size, 1)
    )
    for flag, seconds in (("--slo-itl-ms", args.slo_itl_ms), ("--timeout", args.timeout)):
        if not seconds > 0:
            raise UsageError(f"{flag}: expected more than 0, got {seconds:g}")


def _run(args: argparse.Namespace) -> None:
    from forkjoin_bench.comparison import report
    from forkjoin_bench.comparison.run import Bench, Plan
    from forkjoin_bench.comparison.scenarios import choose
    from forkjoin_bench.host import host_facts
    from forkjoin_bench.inputs.models import make_model
    from forkjoin_bench.systems.server import ServerFailed

    rounds = args.rounds if args.rounds is not None else QUICK_ROUNDS if args.quick else ROUNDS
    _check_run(args, rounds)
    folder = (args.out / args.model).resolve()
    plan = Plan(
        make_model(args.model, folder, args.dtype),
        choose(args.scenario, quick=args.quick, loads=args.loads, traces=args.traces),
        rounds,
        args.seed,
        folder,
        tuple(args.systems),
        args.block_size,
        not args.compiled,
        args.timeout,
        args.starts,
        args.slo_itl_ms,
    )
    facts = {
        "command": args.command,
        "model": args.model,
        "dtype": args.dtype,
        "rounds": rounds * args.starts,
        "starts": args.starts,
        "quick": args.quick,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "host": host_facts(),
    }
    path = args.out / f"{args.model}.json"

    def save(bench: Bench) -> None:
        configs = [config.options for config in bench.configs]
        more = {
            "configs": configs,
            "start_s": bench.start_s,
            "load_average_after": host_facts()["load_average"],
        }
        report.write(report.result_of(facts | more, bench.runs), path)

    bench = Bench(plan, save)
    try:
        asyncio.run(bench.run())
    except ServerFailed as error:
        raise UsageError(str(error)) from error
    finally:  # what was measured before something broke is kept
        if bench.runs:
            save(bench)
            _show([path])
    if wrong := sum(len(run.errors) for run in bench.runs):
        raise UsageError(f"{wrong} answers were wrong: see the end of the report")


def _report(args: argparse.Namespace) -> None:
    _show(args.results)


def _show(paths: list[Path]) -> None:
    from forkjoin_bench.comparison import report
    from forkjoin_bench.comparison.plots import plot_all

    for path in paths:
        result, runs = report.read_runs(path)
        text = report.markdown(result, runs)
        path.with_suffix(".md").write_text(text)
        print(text)
        plots = plot_all(runs, path.with_suffix(""))
        print("\n".join(f"written: {p}" for p in [path, path.with_suffix(".md"), *plots]))


def _targets(args: argparse.Namespace) -> None:
    from forkjoin_bench.comparison import report, targets

    read = [report.read_runs(path) for path in args.results]
    print(targets.markdown(read))
