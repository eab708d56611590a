"""``forkjoin``: the command line, where everything is put together."""

from __future__ import annotations

import argparse
import os
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from forkjoin_scheduler.bound import BoundDialect
from forkjoin_scheduler.dialect import Dialect
from forkjoin_scheduler.dialect_files import builtin_names, load
from forkjoin_scheduler.errors import ForkJoinError, UsageError
from forkjoin_server.flags import add_flags, configure
from forkjoin_server.in_flight import shared_with_children

EMBEDDED_MODEL = Path(__file__).parent / "embedded"
EMBEDDED_NAME = "abacus"
#: Seconds that a SIGTERM leaves requests in flight to finish, unless --shutdown-timeout says else.
DRAIN_S = 30

USAGE = """usage: forkjoin serve [MODEL] [--dialect NAME|FILE|none] [limits] [any flag of vllm serve]
       forkjoin dialects
       forkjoin dialects check MODEL DIALECT
       forkjoin bench run|report|targets|abacus
       forkjoin --version

Without MODEL, serves the embedded model. Every flag of `vllm serve` works as it does there."""


def main(argv: list[str] | None = None) -> None:
    """Run ``argv`` (default: the process's own). Exits with 2 and one sentence on bad input."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        if argv[:1] == ["serve"]:
            serve(argv[1:])
        elif argv[:1] == ["bench"]:
            bench(argv[1:])
        elif argv[:2] == ["dialects", "check"]:
            check_dialect(argv[2:])
        elif argv == ["dialects"]:
            for name in builtin_names():
                print(f"{name}\t{load(name).source}")
        elif argv == ["--version"]:
            print(f"vllm-forkjoin {version('vllm-forkjoin')}")
        else:
            print(USAGE, file=sys.stderr)
            raise SystemExit(0 if argv in (["--help"], ["-h"]) else 2)
    except ForkJoinError as error:
        print(f"forkjoin: {error}", file=sys.stderr)
        raise SystemExit(2) from error


def serve(argv: list[str]) -> None:
    """Run ``vllm serve`` with ``argv``, our flags among it, in the way that these ask for.

    Raises UnsupportedEngine if vLLM is missing, another version, or set up as fork/join can't be;
    DialectError for a dialect that is wrong or not the model's; UsageError for flags that can't be.
    """
    from forkjoin_server.vllm_seam import check_version, run_serve

    if any(a.partition("=")[0] in ("--help", "-h") for a in argv):
        print(_own_help())
    check_version()
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    # vLLM's argument parser looks at the process's own arguments too.
    sys.argv = ["forkjoin", "serve", *argv]
    args = serve_args(argv)
    with shared_with_children():
        run_serve(args)


def serve_args(argv: list[str]) -> argparse.Namespace:
    """The parsed arguments of vLLM that do what ``forkjoin serve ARGV`` asks."""
    from forkjoin_server.vllm_seam import parse_serve

    args = parse_serve(
        argv,
        add_flags,
        default_model=str(EMBEDDED_MODEL),
        default_name=EMBEDDED_NAME,
        default_drain_s=DRAIN_S,
    )
    configure(args)
    return args


def _own_help() -> str:
    parser = argparse.ArgumentParser(
        prog="forkjoin serve",
        usage=USAGE.removeprefix("usage: "),
        description="Fork/join's own flags; those of `vllm serve` follow.",
        add_help=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_flags(parser)
    return parser.format_help()


def bench(argv: list[str]) -> None:
    """Run the benchmarks. Raises UnsupportedEngine or UsageError if what they need is not installed."""
    from forkjoin_server.vllm_seam import check_version

    check_version()
    missing = [name for name in ("aiohttp", "matplotlib") if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"bench needs {' and '.join(missing)}: install vllm-forkjoin[bench], or run make install-dev"
        )
    from forkjoin_bench.cli import main as run_benchmarks

    run_benchmarks(argv)


def check_dialect(argv: list[str]) -> None:
    """Say whether the tokenizer of a model has what a dialect needs.

    Raises DialectError naming what it lacks, UsageError if there is no such model.
    """
    if len(argv) != 2:
        raise UsageError(f"dialects check: expected MODEL and DIALECT, got {' '.join(argv) or 'nothing'}")
    from forkjoin_server.vllm_seam import tokenizer_of

    model, dialect = argv[0], load(argv[1])
    bound = BoundDialect.bind(dialect, tokenizer_of(model))
    print(f"{model} fits {dialect.name}: {'; '.join(_found(dialect, bound.dialect))}")


def _found(dialect: Dialect, bound: Dialect) -> list[str]:
    """What ``dialect`` needs and the tokenizer that it was ``bound`` to has."""
    found = []
    if dialect.control_tokens:
        found.append(f"each of {', '.join(dialect.control_tokens)} is one token")
    if dialect.tags_are == "text":
        found.append("its tags are text, which any tokenizer writes")
    if bound != dialect:
        found.append("the chat template gives the turns that it speaks in")
    return found or ["it needs nothing of the tokenizer"]


if __name__ == "__main__":
    main()
