"""``forkjoin``: the command line, where everything is put together."""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import sys
from importlib.metadata import version
from importlib.util import find_spec
from typing import NoReturn

from forkjoin_scheduler.dialects.files import builtin_names, load
from forkjoin_scheduler.errors import ForkJoinError, UsageError
from forkjoin_scheduler.excerpt import cut
from forkjoin_server.access import keys, sighup
from forkjoin_server.operate import logs
from forkjoin_server.operate.in_flight import shared_with_children
from forkjoin_server.operate.interrupts import killing, leave_to_the_parent
from forkjoin_server.operate.leaving import leave
from forkjoin_server.operate.orphans import die_with_the_parent
from forkjoin_server.operate.output import never_fail
from forkjoin_server.start import dialect_commands, dialect_evidence
from forkjoin_server.start.benchmarks import benchmarks
from forkjoin_server.start.configuration import resolve
from forkjoin_server.start.effective import Given, effective, lines
from forkjoin_server.start.flags import add_flags
from forkjoin_server.start.nearest import nearest_ones

if multiprocessing.current_process().name != "MainProcess":  # spawned by it: imports its main module first
    die_with_the_parent()
    leave_to_the_parent()
    never_fail()

USAGE = """usage: forkjoin serve [MODEL] [--dialect NAME|FILE|none] [limits] [any flag of vllm serve]
       forkjoin doctor [--json] [the flags of serve]
       forkjoin doctor sizing [--gpu-gib N] [--threads N] … [MODEL]
       forkjoin verify [MODEL] [--json FILE] [flags of serve]
       forkjoin dialects
       forkjoin dialects check MODEL DIALECT
       forkjoin dialects test DIALECT FILE
       forkjoin dialects infer MODEL|FILE [DIALECT…]
       forkjoin keys new NAME
       forkjoin chat|top [URL]
       forkjoin trace FILE|ID [URL] [--svg FILE] [--png FILE]
       forkjoin run-batch -i FILE -o FILE [--url URL | [MODEL] [flags of serve]]
       forkjoin bench run|report|targets|abacus|drafted|scheduler|overload|simulate
       forkjoin completion bash|zsh|fish
       forkjoin --version

Without MODEL, serves the embedded model. Every flag of `vllm serve` works as it does there."""


COMMANDS = (
    "serve", "doctor", "verify", "dialects", "keys", "chat", "top", "trace", "run-batch", "bench",
    "completion", "--help", "--version",
)  # fmt: skip
#: Commands, and none, whose help is the list of all.
_SHORT_HELP = ("--help", "-h", "dialects", "keys", "completion", "verify")
#: What follows a command that has commands of its own.
_SUBCOMMANDS = {
    "dialects": "nothing, check MODEL DIALECT, test DIALECT FILE or infer MODEL|FILE",
    "keys": "new NAME",
}

_KEY_SEEN = (
    "--api-key: every user who can list this machine's processes can read it: set VLLM_API_KEY, or use "
    "--api-key-file, which holds hashes"
)


def main(argv: list[str] | None = None) -> None:
    """Run ``argv`` (default: the process's own). Exits with 2 and one sentence on bad input."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        if argv[:1] and argv[0] in _SHORT_HELP and _asks_for_help(argv):
            print(USAGE)
        elif argv[:1] == ["serve"]:
            serve(argv[1:])
        elif argv[:2] == ["doctor", "sizing"]:
            from forkjoin_server.doctor.sizing_command import sizing

            print(sizing(argv[2:]))
        elif argv[:1] == ["doctor"]:
            doctor(argv[1:])
        elif argv[:1] == ["verify"]:
            from forkjoin_server.verify.command import main as verify

            raise SystemExit(verify(argv[1:]))
        elif argv[:1] == ["bench"]:
            bench(argv[1:])
        elif argv[:1] in (["chat"], ["trace"], ["top"]):
            terminal(argv)
        elif argv[:1] == ["run-batch"]:
            from forkjoin_server.start.batches import run_batch

            raise SystemExit(run_batch(argv[1:]))
        elif argv[:1] == ["completion"]:
            complete(argv[1:])
        elif argv[:2] == ["keys", "new"]:
            make_key(argv[2:])
        elif argv[:2] == ["dialects", "check"]:
            dialect_commands.check(argv[2:])
        elif argv[:2] == ["dialects", "test"]:
            dialect_commands.test(argv[2:])
        elif argv[:2] == ["dialects", "infer"]:
            dialect_evidence.infer(argv[2:])
        elif argv == ["dialects"]:
            for name in builtin_names():
                print(f"{name}\t{load(name).source}")
        elif argv == ["--version"]:
            print(f"vllm-forkjoin {version('vllm-forkjoin')}")
        elif argv:
            raise UsageError(_no_command(argv))
        else:
            print(USAGE, file=sys.stderr)
            raise SystemExit(2)
    except ForkJoinError as error:
        print(f"forkjoin: {error}", file=sys.stderr)
        raise SystemExit(2) from error


def serve(argv: list[str]) -> NoReturn:
    """Run ``vllm serve`` with ``argv``, our flags among it, in the way that these ask for. Ends the process.

    Raises UnsupportedEngine if vLLM is missing, another version, or set up as fork/join can't be;
    DialectError for a dialect that is wrong or not the model's; UsageError for flags that can't be.
    """
    from forkjoin_server.vllm_seam.start.log_files import log_as
    from forkjoin_server.vllm_seam.start.serving import run_serve
    from forkjoin_server.vllm_seam.start.versions import check_version

    never_fail()
    sighup.hold()
    with killing():
        _help_first(argv)
        starts_as_json = logs.wants_json(argv)
        if starts_as_json:
            logs.start_relay()
        check_version()
        given = _resolve(argv)
    args = given.args
    with shared_with_children(), contextlib.ExitStack() as stack:
        if args.forkjoin_log_format == "json":
            if not starts_as_json:
                logs.start_relay()
            log_as(args, lambda *how: stack.enter_context(logs.written(logs.config(*how))))
        print("\n".join(lines(effective(given))), file=sys.stderr, flush=True)
        if given.choice is not None:
            print(f"forkjoin: {given.choice}", file=sys.stderr, flush=True)
        if given.origins.get("api_key") == "flag":
            print(f"forkjoin: {_KEY_SEEN}", file=sys.stderr, flush=True)
        if args.forkjoin_api_key_file is not None:
            sighup.hand_on()
        else:
            sighup.release()
        run_serve(args)
    leave(0)


def _resolve(argv: list[str]) -> Given:
    # vLLM's argument parser looks at the process's own arguments too.
    sys.argv = ["forkjoin", "serve", *argv]
    given = resolve(argv, os.environ)
    # On a CPU vLLM takes nearly all memory for the cache, unless told; and this variable before any flag.
    if given.origins.keys().isdisjoint(("kv_cache_memory_bytes", "gpu_memory_utilization")):
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    # So many outputs of a step vLLM handles before it answers anything else, by itself 128. One with 20
    # alternatives to its token takes half a millisecond.
    os.environ.setdefault("VLLM_V1_OUTPUT_PROC_CHUNK_SIZE", "32")
    return given


def doctor(argv: list[str]) -> None:
    """Say what ``forkjoin serve ARGV`` would meet, a line a check. Exits with 1 if it would not start.

    Raises UsageError and DialectError for what `forkjoin serve` refuses before it looks at anything.
    """
    _help_first(argv)
    # The checks report what vLLM would log. Its log lines must not get into the JSON.
    os.environ |= {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_LOGGING_STREAM": "ext://sys.stderr"}
    from forkjoin_server.doctor.examine import as_json, examine, installed, is_well

    checks, values, is_json = installed(), [], "--json" in argv
    if is_well(checks):
        given = _resolve([a for a in argv if a != "--json"])
        checks, values = [*checks, *examine(given)], effective(given)
    print(as_json(checks, values) if is_json else "\n".join(map(str, checks)))
    raise SystemExit(0 if is_well(checks) else 1)


def serve_args(argv: list[str]) -> argparse.Namespace:
    """The parsed arguments of vLLM that do what ``forkjoin serve ARGV`` asks."""
    return resolve(argv, os.environ).args


def _no_command(argv: list[str]) -> str:
    """What is wrong with ``argv``, which begins with no command."""
    name, *others = argv
    if name in _SUBCOMMANDS:
        return f"{name}: expected {_SUBCOMMANDS[name]}, got {cut(' '.join(others)) or 'nothing'}"
    near = ", ".join(nearest_ones(name, COMMANDS, 3))
    return f"expected a command, got {cut(name)}: the nearest are {near}, and forkjoin --help lists all"


def _asks_for_help(argv: list[str]) -> bool:
    return any(a.partition("=")[0] in ("--help", "-h") for a in argv)


def _help_first(argv: list[str]) -> None:
    """Print our own help where vLLM's parser will print its."""
    if not _asks_for_help(argv):
        return
    parser = argparse.ArgumentParser(
        prog="forkjoin serve",
        usage=USAGE.removeprefix("usage: "),
        description="Fork/join's own flags; those of `vllm serve` follow.",
        add_help=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_flags(parser)
    print(parser.format_help())


def bench(argv: list[str]) -> None:
    """Run the benchmarks. Raises UnsupportedEngine or UsageError if what they need is not installed."""
    from forkjoin_server.vllm_seam.start.versions import check_version

    if not _asks_for_help(argv):
        check_version()
        _check_bench_packages()
    benchmarks().main(argv)


def _check_bench_packages() -> None:
    missing = [name for name in ("aiohttp", "matplotlib") if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"bench needs {' and '.join(missing)}: install vllm-forkjoin[bench], or run make install-dev"
        )


def terminal(argv: list[str]) -> None:
    """Run a command of the client's: it only asks a server, and needs no vLLM."""
    from forkjoin.terminal.commands import main as run_command

    run_command(argv)


def complete(argv: list[str]) -> None:
    """Write what makes a shell complete our commands and flags. Raises UsageError for another shell."""
    from forkjoin_server.start.completion import SHELLS, script

    if len(argv) != 1 or argv[0] not in SHELLS:
        raise UsageError(
            f"completion: expected one of {', '.join(SHELLS)}, got {' '.join(argv) or 'nothing'}"
        )
    print(script(argv[0]))


def make_key(argv: list[str]) -> None:
    """Make a key: its line for ``--api-key-file`` on standard output, itself on standard error, this once.

    Raises UsageError for a name that can't be.
    """
    if len(argv) != 1:
        raise UsageError(f"keys new: expected one NAME, got {' '.join(argv) or 'nothing'}")
    key = keys.new_key()
    print(keys.line_of(argv[0], key), flush=True)
    print(f"The key of {argv[0]}, which is shown this once and kept nowhere: {key}", file=sys.stderr)


if __name__ == "__main__":
    main()
