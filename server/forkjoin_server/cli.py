"""``forkjoin``: the command line, where everything is put together."""

from __future__ import annotations

import argparse
import json
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from forkjoin_scheduler.dialect import Limits, builtin_names, load
from forkjoin_scheduler.errors import ForkJoinError, UsageError
from forkjoin_scheduler.settings import KEY, Settings

EMBEDDED_MODEL = Path(__file__).parent / "embedded"
EMBEDDED_NAME = "abacus"
#: Seconds that a SIGTERM leaves requests in flight to finish, unless --shutdown-timeout says else.
DRAIN_S = 30

USAGE = """usage: forkjoin serve [MODEL] [--dialect NAME|FILE|none] [limits] [any flag of vllm serve]
       forkjoin dialects
       forkjoin dialects check MODEL DIALECT
       forkjoin --version

Without MODEL, serves the embedded model. Every flag of `vllm serve` works as it does there."""

SCHEDULER = "forkjoin_scheduler.vllm_seam.scheduler.ForkJoinScheduler"
MIDDLEWARE = "forkjoin_server.middleware.ForkJoinMiddleware"


def main(argv: list[str] | None = None) -> None:
    """Run ``argv`` (default: the process's own). Exits with 2 and one sentence on bad input."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        if argv[:1] == ["serve"]:
            if any(a.partition("=")[0] in ("--help", "-h") for a in argv):
                print(_parser().format_help())
            run_vllm(serve_arguments(argv[1:]))
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


def check_dialect(argv: list[str]) -> None:
    """Say whether the tokenizer of a model has what a dialect needs.

    Raises DialectError naming what it lacks, UsageError if there is no such model.
    """
    if len(argv) != 2:
        raise UsageError(f"dialects check: expected MODEL and DIALECT, got {' '.join(argv) or 'nothing'}")
    from forkjoin_server.vllm_seam import tokenizer_of

    model, dialect = argv[0], load(argv[1])
    dialect.check_tokenizer(tokenizer_of(model))
    print(f"{model} fits {dialect.name}: each of {', '.join(dialect.control_tokens)} is one token")


def serve_arguments(argv: list[str]) -> list[str]:
    """The arguments of ``vllm serve`` that do what ``forkjoin serve ARGV`` asks.

    Raises DialectError for a wrong dialect, UsageError for flags that can't be.
    """
    ours, rest = _parser().parse_known_args(argv)
    config = _additional_config(ours.additional_config)
    flags = {a.partition("=")[0].replace("_", "-") for a in rest}
    if "--shutdown-timeout" not in flags:
        rest += ["--shutdown-timeout", str(DRAIN_S)]
    rest += ["--middleware", MIDDLEWARE]
    if ours.dialect == "none":
        return [*rest, "--additional-config", json.dumps(config)]
    if "--scheduler-cls" in flags:
        raise UsageError(
            "--scheduler-cls: expected none, for fork/join is a scheduler itself: drop it, or serve "
            "with --dialect none"
        )
    settings = Settings.of(load(ours.dialect), _given_limits(ours))
    config |= {KEY: settings.model_dump(mode="json")}
    return [*rest, "--scheduler-cls", SCHEDULER, "--additional-config", json.dumps(config)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="forkjoin serve",
        usage=USAGE.removeprefix("usage: "),
        description="Fork/join's own flags; those of `vllm serve` follow.",
        add_help=False,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--dialect", default="threadweaver", help=f"{', '.join(builtin_names())}, a YAML file, or none"
    )
    parser.add_argument("--additional-config", default="{}", help="as in vLLM; fork/join adds its settings")
    for name, field in Limits.model_fields.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="N", help=field.description)
    return parser


def _given_limits(ours: argparse.Namespace) -> dict[str, int]:
    given = {n: getattr(ours, n) for n in Limits.model_fields if getattr(ours, n) is not None}
    try:
        Limits(**given)
    except ValidationError as error:
        problems = [
            f"--{str(e['loc'][0]).replace('_', '-')}: {e['msg']}, got {e['input']}" for e in error.errors()
        ]
        raise UsageError("; ".join(problems)) from error
    return given


def _additional_config(text: str) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"--additional-config: expected a JSON object, {error}") from error
    if not isinstance(config, dict) or KEY in config:
        raise UsageError(f"--additional-config: expected a JSON object without the key {KEY!r}, got {text}")
    return config


def run_vllm(arguments: list[str]) -> None:
    """Hand over to ``vllm serve``. Raises UnsupportedEngine if vLLM is missing or another version."""
    from forkjoin_server.vllm_seam import vllm_serve

    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    # vLLM's argument parser looks at the process's own arguments too.
    sys.argv = ["forkjoin", "serve", *arguments]
    vllm_serve(arguments, default_model=str(EMBEDDED_MODEL), default_name=EMBEDDED_NAME)


if __name__ == "__main__":
    main()
